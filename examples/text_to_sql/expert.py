"""Knows the answers: the warm start's agents say what this says."""

from __future__ import annotations

from typing import Any


def answer(task: dict[str, Any], messages: list[dict[str, Any]]) -> str:
    """The right query, or the verdict on the query that is shown."""
    if not messages[0]["content"].startswith("Say whether"):
        return task["reference"]["query"]
    shown = messages[-1]["content"].splitlines()[1]
    return "correct" if shown == task["reference"]["query"] else "wrong"
