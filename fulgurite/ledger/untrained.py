"""Explains why the actions of a successful call are recorded and are no term of the ledger: nothing
trains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from fulgurite.enums import Mode
from fulgurite.events import LlmCall


class Untrained(StrEnum):
    """Why the ledger does not count a call's actions."""

    live = "live"
    """Mode `live`."""
    val = "val"
    """Mode `val`."""
    no_policy = "no_policy"
    """Mode `train`, and no trained policy behind the alias."""


UNTRAINED: Mapping[Untrained, str] = {
    Untrained.live: "live traffic (a plain key, or a group declared with mode live): rollouts of "
    "groups declared with mode train are trained",
    Untrained.val: "mode val: held-out tasks are measured, never trained",
    Untrained.no_policy: "mode train, but no trained policy is behind the alias: ask for an alias "
    "that leads to a policy (FULGURITE_ALIASES)",
}
"""What a person needs to know of every reason."""


def why_untrained(call: LlmCall) -> Untrained | None:
    """Why the ledger does not count a call; None if it does."""
    if call.mode is Mode.train:
        return Untrained.no_policy if call.policy is None else None
    return Untrained.val if call.mode is Mode.val else Untrained.live
