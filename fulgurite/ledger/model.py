"""Defines what the ledger is counted from, and its result.

The rules are in `fulgurite.ledger.balance`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from fulgurite.events import Event, EventStruct


class Entry(Protocol):
    """A record of a topic; `event` is None where its bytes could not be decoded."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def event(self) -> Event | None: ...


class Sources(EventStruct, frozen=True, kw_only=True):
    """The topics, in the order in which a live log has to be read."""

    updates: Iterable[Entry]
    dead_letters: Iterable[Entry]
    ledger: Iterable[Entry]
    trajectories: Iterable[Entry]
    episodes: Iterable[Entry]
    statuses: Iterable[Entry]
    calls: Iterable[Entry]


class Account(EventStruct, frozen=True, kw_only=True):
    """One policy in one partition of `llm.calls`."""

    policy: str
    partition: int
    until: int
    """Offset up to which calls were counted, exclusive."""
    actions: int
    """Distinct successful train-mode actions."""
    terms: dict[str, int]
    remainder: int
    """Actions in no term, surplus terms, and actions without a call."""


class Discrepancy(EventStruct, frozen=True, kw_only=True):
    """An action that does not add up."""

    action: str
    policy: str
    partition: int
    terms: tuple[str, ...]
    """Where it was found: nowhere, or in several."""
    has_call: bool


class Balance(EventStruct, frozen=True, kw_only=True):
    """The result."""

    accounts: tuple[Account, ...]
    discrepancies: tuple[Discrepancy, ...]
    overdue: tuple[str, ...]
    """Actions that are open without an episode or a closing, though their group's deadline is over.
    """
    expired: int
    """Actions that the ledger names, of calls older than the topic's retention: not counted on
    either side.
    """
    live_rollouts: int = 0
    """Rollouts of mode `live` in `llm.calls`: they are recorded, and no part of these books."""

    @property
    def remainder(self) -> int:
        """0, or something was lost or counted twice."""
        return sum(account.remainder for account in self.accounts)

    @property
    def actions(self) -> int:
        """The left side, over all policies and partitions."""
        return sum(account.actions for account in self.accounts)

    @property
    def terms(self) -> dict[str, int]:
        """The right side, over all policies and partitions."""
        return dict(sum((Counter(account.terms) for account in self.accounts), Counter[str]()))
