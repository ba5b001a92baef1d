"""Defines the inputs and the result of balancing the ledger (`fulgurite.ledger.balance`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

import msgspec

from fulgurite.events import Event, EventStruct


class Entry(Protocol):
    """A record of a topic; `event` is None if its bytes cannot be decoded."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def event(self) -> Event | None: ...


class Sources(EventStruct, frozen=True, kw_only=True):
    """The topics, in the order in which a live log must be read."""

    updates: Iterable[Entry]
    dead_letters: Iterable[Entry]
    ledger: Iterable[Entry]
    trajectories: Iterable[Entry]
    episodes: Iterable[Entry]
    statuses: Iterable[Entry]
    calls: Iterable[Entry]


class Account(EventStruct, frozen=True, kw_only=True):
    """The counts of one policy in one partition of `llm.calls`."""

    policy: str
    partition: int
    until: int
    """Offset up to which calls were counted, exclusive."""
    actions: int
    """Distinct successful actions of mode `train`, and of live traffic that is opted in."""
    terms: dict[str, int]
    remainder: int
    """Actions in no term, surplus terms, and actions without a call."""


class Discrepancy(EventStruct, frozen=True, kw_only=True):
    """An action that is in no term, in several, or has no call."""

    action: str
    policy: str
    partition: int
    terms: tuple[str, ...]
    """The terms it was found in."""
    has_call: bool


class Balance(EventStruct, frozen=True, kw_only=True):
    """The result of balancing the ledger."""

    accounts: tuple[Account, ...]
    discrepancies: tuple[Discrepancy, ...]
    overdue: tuple[str, ...]
    """Open actions without an episode or a closing whose group's deadline has passed."""
    expired: int
    """Number of actions in the ledger whose calls retention removed; they are not counted."""
    live_rollouts: int = 0
    """Rollouts with calls of mode `live` that are not part of the ledger."""
    untrained: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Successful actions that are no part of the ledger, by why (`fulgurite.ledger.untrained`)."""
    without_learner: tuple[str, ...] = ()
    """Policies whose actions wait for a learner, and for which none was ever started."""
    offline_actions: int = 0
    """Actions that were trained offline, once or more often; each has its term all the same."""

    @property
    def remainder(self) -> int:
        """0 unless an action was lost or counted twice."""
        return sum(account.remainder for account in self.accounts)

    @property
    def actions(self) -> int:
        """Number of actions over all policies and partitions: the left side."""
        return sum(account.actions for account in self.accounts)

    @property
    def terms(self) -> dict[str, int]:
        """Counts by term over all policies and partitions: the right side."""
        return dict(sum((Counter(account.terms) for account in self.accounts), Counter[str]()))
