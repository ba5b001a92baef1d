"""Accounts for a newer revision of a group after a learner took the group into a batch.

Nothing is trained again. Actions that were trained are `amended`: what they were trained on is no
longer what the log says, for the baseline is the group's. Actions that the learner has not
accounted for came too late to be trained: `filtered(late)`. Everything else stays what it was.
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
    """Entries for a whole revision of a settled group. `accounts`: what the learner's entries say
    of the group's actions.
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
    told = [
        (LedgerTerm.amended, None, trained),
        (LedgerTerm.filtered, FilterReason.late, sorted(offered - accounts.keys())),
    ]
    return tuple(
        ledger_entry(pending, term, reason, actions, version, time_ms)
        for term, reason, actions in told
        if actions
    )


def accounts_of(entries: list[LedgerEntry]) -> dict[str, LedgerTerm]:
    """What a learner's entries say of each action; the first entry of an action decides, and
    `amended` after it.
    """
    accounts: dict[str, LedgerTerm] = {}
    for entry in entries:
        for action in entry.actions:
            if entry.term is LedgerTerm.amended:
                accounts[action] = entry.term
            else:
                accounts.setdefault(action, entry.term)
    return accounts
