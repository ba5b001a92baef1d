"""The outcomes of actions. Topic `training.ledger`."""

from __future__ import annotations

from fulgurite.enums import FilterReason, LedgerTerm
from fulgurite.events.base import Event


class LedgerEntry(Event, frozen=True, kw_only=True):
    """The outcomes of actions. Topic `training.ledger`."""

    policy: str
    """The policy."""
    group_id: str
    """Group of the actions; the Kafka key."""
    group_revision: str | None = None
    """The closing they belong to."""
    term: LedgerTerm
    """The term of the ledger."""
    reason: FilterReason | None = None
    """Set with `filtered`: why."""
    actions: tuple[str, ...] = ()
    """`call_id#choice`."""
    version: str | None = None
    """Version that was trained on them; for groups without trained actions, the version after which
    they were settled.
    """
    source: str
    """`aggregator`, `rewarder`, `learner`, or `offline` for training on a recording."""
