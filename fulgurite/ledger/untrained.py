"""Explains why the actions of a successful call are recorded and are no term of the ledger: nothing
trains them. Counts such actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from fulgurite.calls.training_use import is_counted, is_left_out
from fulgurite.enums import Mode
from fulgurite.events import LlmCall
from fulgurite.trajectories.building import successful_actions


class Untrained(StrEnum):
    """Why the ledger does not count a call's actions."""

    live = "live"
    """Mode `live`, and not opted in."""
    val = "val"
    """Mode `val`."""
    left_out = "left_out"
    """Mode `live`, and its request, key or person is left out of training."""
    no_policy = "no_policy"
    """Mode `train`, and no trained policy behind the alias."""


UNTRAINED: Mapping[Untrained, str] = {
    Untrained.live: "live traffic (a plain key, or a group declared with mode live): rollouts of "
    "groups declared with mode train are trained, and plain keys' calls to the aliases in "
    "FULGURITE_TRAIN_LIVE",
    Untrained.left_out: "live traffic that its request (x-fulgurite-no-train), its key "
    "(FULGURITE_NO_TRAIN_KEYS) or its person (FULGURITE_NO_TRAIN_SUBJECTS) leaves out of training",
    Untrained.val: "mode val: held-out tasks are measured, never trained",
    Untrained.no_policy: "mode train, but no trained policy is behind the alias: ask for an alias "
    "that leads to a policy (FULGURITE_ALIASES)",
}
"""What a person needs to know of every reason."""


def why_untrained(call: LlmCall) -> Untrained | None:
    """Why the ledger does not count a call; None if it does."""
    if call.policy is not None and is_counted(call):
        return None
    if call.mode is not Mode.live:
        return Untrained.val if call.mode is Mode.val else Untrained.no_policy
    return Untrained.left_out if is_left_out(call) else Untrained.live


class UntrainedActions:
    """Counts actions that the ledger does not count, by why. A repeated call adds nothing."""

    def __init__(self) -> None:
        self._actions: dict[Untrained, set[str]] = {}

    def add(self, call: LlmCall) -> bool:
        """Count a call's actions; returns whether they are no part of the ledger."""
        why = why_untrained(call)
        if why is None:
            return False
        self._actions.setdefault(why, set()).update(successful_actions(call))
        return True

    def counts(self) -> dict[str, int]:
        """The number of distinct actions by `Untrained`, without zeros."""
        return {why.value: len(actions) for why, actions in self._actions.items() if actions}
