"""What becomes of actions, in words: terms of the ledger, reasons, and what helps."""

from __future__ import annotations

from collections.abc import Mapping

from fulgurite.enums import FilterReason
from fulgurite.ledger.remedies import REMEDIES
from fulgurite.ledger.untrained import UNTRAINED, Untrained

TERMS: Mapping[str, str] = {
    "trained": "carried loss in an optimizer step",
    "filtered": "carry no loss, for a reason",
    "stale": "were too old when their batch was made",
    "amended": "were trained before a late reward changed their group",
    "dead_lettered": "are in dead.letters",
    "open": "wait for what comes next",
    "recorded": "recorded, not trained: no part of the ledger",
}
"""The terms in the order of the ledger, and what is true of their actions."""

_OPEN: Mapping[str, str] = {
    "no_episode": "its rollout has not ended: does the agent or its runner report `finished`?",
    "group_not_closed": "its group waits for its other rollouts or their rewards",
    "waits_for_learner": "no batch has taken it yet: is a learner running?",
    "group_to_be_closed_anew": "a late event changes its group, which is closed anew",
}


def meaning(term: str, reason: str | None) -> str:
    """What a reason means, and what a person can do about it."""
    if reason is None:
        return TERMS.get(term, "")
    if term == "open":
        return _OPEN.get(reason, "")
    if term == "recorded":
        return UNTRAINED[Untrained(reason)] if reason in set(Untrained) else ""
    return REMEDIES[FilterReason(reason)] if reason in set(FilterReason) else ""
