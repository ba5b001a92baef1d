"""Prompt updates of tests."""

from __future__ import annotations

from typing import Any

from fulgurite.enums import PromptKind
from fulgurite.events import PromptUpdate


def version(number: int, *, at: int = 0, alias: str = "policy", **fields: Any) -> PromptUpdate:
    """A new version."""
    return PromptUpdate(
        event_id=f"{alias}{number}", event_time=at, alias=alias, kind=PromptKind.set, version=f"prompt@{number}", reason="", author="",
        **fields,
    )  # fmt: skip


def rollback(to: str | None, *, at: int, role: str | None = None) -> PromptUpdate:
    """A return to a version, or to none."""
    return PromptUpdate(
        event_id=f"back{at}", event_time=at, alias="policy", role=role, kind=PromptKind.rollback, version=to, reason="", author="",
    )  # fmt: skip
