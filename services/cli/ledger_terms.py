"""Counts what the ledger says of actions, version by version, for trackers."""

from __future__ import annotations

from collections import Counter, defaultdict

from fulgurite.enums import FilterReason, LedgerTerm
from fulgurite.events import LedgerEntry, PolicyUpdate
from fulgurite.learning.offline import OFFLINE


class LedgerTerms:
    """Adds up ledger entries until their version is taken. An entry counts once, by its id.

    Entries that a closing wrote name no version: they count with the version that was the newest
    when they were written, or with the policy's first.
    """

    def __init__(self) -> None:
        self._entries: defaultdict[str, dict[str, LedgerEntry]] = defaultdict(dict)
        """By policy: the entries that no version has taken, by id."""
        self._taken: dict[str, set[str]] = defaultdict(set)
        """By policy: versions that were taken; what is added to them later is left out."""

    def add(self, entry: LedgerEntry) -> None:
        """Add an entry of the log."""
        if entry.version not in self._taken[entry.policy]:
            self._entries[entry.policy].setdefault(entry.event_id, entry)

    def take(self, update: PolicyUpdate, before_ms: int) -> dict[str, float]:
        """Return and forget the terms of a version as metrics, `ledger/trained`,
        `ledger/filtered/REASON`: numbers of actions. `before_ms`: when the next version was made.
        """
        pending = self._entries[update.policy]
        own = [
            entry
            for entry in pending.values()
            if entry.version == update.version
            or (entry.version is None and entry.event_time < before_ms)
        ]
        for entry in own:
            del pending[entry.event_id]
        if update.version is not None:
            self._taken[update.policy].add(update.version)
        counted: Counter[str] = Counter()
        for entry in own:
            counted[_name(entry)] += len(entry.actions)
        return {name: float(count) for name, count in counted.items()}


def _name(entry: LedgerEntry) -> str:
    if entry.source == OFFLINE:
        return f"ledger/{OFFLINE}"
    if entry.term is LedgerTerm.filtered:
        return f"ledger/filtered/{entry.reason or FilterReason.unknown}"
    return f"ledger/{entry.term}"
