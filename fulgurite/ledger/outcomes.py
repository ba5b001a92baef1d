"""Finds what `training.ledger` says of single actions.

A learner's entry wins over one of a closing, and a later entry over an earlier one. Offline
training decides nothing, and neither does a learner that trains another policy on a replayed topic.
"""

from __future__ import annotations

from fulgurite.enums import LedgerTerm
from fulgurite.events import LedgerEntry, PolicyUpdate
from fulgurite.learning.batching import LEARNER
from fulgurite.learning.offline import OFFLINE
from fulgurite.learning.relabel import learns_elsewhere


class ActionOutcomes:
    """The entry that counts for each action. Add a policy's updates before its entries."""

    def __init__(self) -> None:
        self._elsewhere: set[str] = set()
        """Policies that are trained on a replayed topic."""
        self._learned: dict[str, LedgerEntry] = {}
        self._left: dict[str, LedgerEntry] = {}
        """Entries of closings."""

    def on_update(self, update: PolicyUpdate) -> None:
        """Note whether the policy's learner reads a replayed topic."""
        if learns_elsewhere(update):
            self._elsewhere.add(update.policy)

    def add(self, entry: LedgerEntry) -> bool:
        """Add the next entry of the log; returns whether it counts."""
        if entry.source == OFFLINE or (entry.source == LEARNER and entry.policy in self._elsewhere):
            return False
        known = self._learned if entry.source == LEARNER else self._left
        known.update(dict.fromkeys(entry.actions, entry))
        return True

    def of(self, action: str) -> LedgerEntry | None:
        """The entry that counts; None if the ledger does not have the action yet."""
        return self._learned.get(action) or self._left.get(action)


def word_of(entry: LedgerEntry) -> str:
    """An entry in one word: its term, or the reason of a filter."""
    return str((entry.term is LedgerTerm.filtered and entry.reason) or entry.term)
