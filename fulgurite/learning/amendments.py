"""Makes ledger entries for a newer revision of a group that a learner has already settled.

Nothing is trained again. Trained actions become `amended`: the group's rewards, and so their
baseline, have changed. Actions that the learner has not accounted for came too late to be trained:
`filtered(late)`. Other actions keep their outcome.
"""

from __future__ import annotations

from collections.abc import Mapping

from fulgurite.enums import FilterReason, LedgerTerm
from fulgurite.events import LedgerEntry
from fulgurite.ids import action_id
from fulgurite.learning.batching import PendingGroup, ledger_entry
from fulgurite.versions import Version


def amended_entries(
    pending: PendingGroup, accounts: Mapping[str, LedgerTerm], version: Version, time_ms: int
) -> tuple[LedgerEntry, ...]:
    """Make the entries for a complete newer revision of a settled group.

    `accounts`: the terms of the group's actions in the learner's earlier entries.
    """
    trained = sorted(
        action
        for action, term in accounts.items()
        if term in (LedgerTerm.trained, LedgerTerm.amended)
    )
    offered = {
        action_id(action.call_id, action.choice)
        for row in pending.rows.values()
        for action in row.actions
        if action.loss
    }
    terms = [
        (LedgerTerm.amended, None, trained),
        (LedgerTerm.filtered, FilterReason.late, sorted(offered - accounts.keys())),
    ]
    return tuple(
        ledger_entry(pending, term, reason, actions, version, time_ms)
        for term, reason, actions in terms
        if actions
    )


def accounts_of(entries: list[LedgerEntry]) -> dict[str, LedgerTerm]:
    """The term of each action in a learner's entries: the first one, or a later `amended`."""
    accounts: dict[str, LedgerTerm] = {}
    for entry in entries:
        for action in entry.actions:
            if entry.term is LedgerTerm.amended:
                accounts[action] = entry.term
            else:
                accounts.setdefault(action, entry.term)
    return accounts
