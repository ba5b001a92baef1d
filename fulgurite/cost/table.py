"""Adds up tokens, seconds and money per run, version, alias or group: a function of the log.

    prompt     = cached + not cached + those of calls whose upstream does not say it
    sampled    tokens that a model generated, in any mode
    trained    of sampled: actions that the ledger calls trained, each counted once
    discarded  of sampled: actions of mode `train` that the ledger filters, calls stale or amended,
               or that a dead letter holds, by reason
    open       of sampled: actions of mode `train` that have no outcome yet

A call belongs to the version whose batch settled its group: those are the calls behind a version.
What an event does not say is counted as unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum

import msgspec

from fulgurite.calls.training_use import is_counted
from fulgurite.cost.prices import Money, Prices, price_of, price_seconds, price_tokens
from fulgurite.cost.tokens import action_tokens, tokens_of
from fulgurite.enums import LedgerTerm, UpdateKind
from fulgurite.events import (
    AgentStatus,
    DeadLetter,
    Event,
    EventStruct,
    LedgerEntry,
    LlmCall,
    PolicyUpdate,
)
from fulgurite.learning.batching import LEARNER
from fulgurite.ledger.balance import DEAD, dead_actions
from fulgurite.ledger.outcomes import ActionOutcomes, word_of
from fulgurite.versions import MalformedVersion, parse_version

_SECONDS = "seconds/"
"""Prefix of the metrics of an update that add up to the learner's time since the one before."""


class By(StrEnum):
    """What a row of the table stands for."""

    run = "run"
    """One `fulgurite run`, or another harness that declares groups with a run id."""
    version = "version"
    """A version of a policy: the calls behind it, and the learner's time for it."""
    alias = "alias"
    """The model name that the agent asked for."""
    group = "group"
    """The rollouts of one task sample."""


class CostSources(EventStruct, frozen=True, kw_only=True):
    """The topics, in the order in which a live log must be read; None: cannot be decoded."""

    updates: Iterable[Event | None]
    dead_letters: Iterable[Event | None]
    ledger: Iterable[Event | None]
    statuses: Iterable[Event | None]
    calls: Iterable[Event | None]


class CostRow(msgspec.Struct, kw_only=True):
    """The sums of one run, version, alias or group."""

    key: str | None
    """None for calls that belong to none."""
    calls: int = 0
    calls_of_unknown_tokens: int = 0
    """Calls without a usage and without token ids; the sums lack their tokens."""
    prompt: int = 0
    cached: int = 0
    not_cached: int = 0
    maybe_cached: int = 0
    """Prompt tokens of calls whose usage does not say how many were cached."""
    sampled: int = 0
    trained: int = 0
    discarded: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    open: int = 0
    actions_of_unknown_tokens: int = 0
    """Trained, discarded or open actions without token ids; the sums lack their tokens."""
    learner_seconds: float = 0.0
    updates_of_unknown_seconds: int = 0
    money: Money | None = None
    """Of what has a price; None without a price file."""


class CostTable(EventStruct, frozen=True, kw_only=True):
    """The rows and their sum."""

    by: By
    currency: str | None
    rows: tuple[CostRow, ...]
    """Versions in their order; others by their tokens, the most first."""
    total: CostRow
    unpriced: tuple[str, ...]
    """Aliases and learners that have calls or seconds, and no price."""


def cost_table(
    sources: CostSources,
    decode: Callable[[bytes], Event],
    by: By,
    prices: Prices | None = None,
    since_ms: int = 0,
) -> CostTable:
    """Fold the topics into a table.

    `decode` reads the bytes of dead letters and may raise CodecError. `since_ms`: updates before it
    are no cost; calls and ledger are taken as they are given.
    """
    costs = _Costs(by, prices)
    costs.read_updates(sources.updates, since_ms)
    costs.read_outcomes(sources.dead_letters, sources.ledger, decode)
    for event in sources.statuses:
        if isinstance(event, AgentStatus) and event.declaration is not None:
            costs.runs[event.group_id] = event.declaration.run_id
    for event in sources.calls:
        if isinstance(event, LlmCall):
            costs.add_call(event)
    return costs.table()


class _Costs:
    def __init__(self, by: By, prices: Prices | None) -> None:
        self._by = by
        self._prices = prices
        self.runs: dict[str, str | None] = {}
        self._outcomes = ActionOutcomes()
        self._versions: dict[tuple[str, str | None], str] = {}
        """The version whose batch settled a group, by group and policy."""
        self._dead: set[str] = set()
        self._rows: dict[str | None, CostRow] = {}
        self._counted: set[str] = set()
        self._unpriced: set[str] = set()

    def read_updates(self, events: Iterable[Event | None], since_ms: int) -> None:
        """Add the learners' seconds. A version that is published again counts once."""
        for event in events:
            if not isinstance(event, PolicyUpdate):
                continue
            self._outcomes.on_update(event)
            version = event.version
            if event.kind is UpdateKind.update and version and event.event_time >= since_ms:
                self._add_update(event, version)

    def read_outcomes(
        self,
        letters: Iterable[Event | None],
        ledger: Iterable[Event | None],
        decode: Callable[[bytes], Event],
    ) -> None:
        """Read what became of actions, and which version settled a group."""
        for event in letters:
            if isinstance(event, DeadLetter):
                self._dead.update(dead_actions(event, decode))
        for event in ledger:
            if (
                isinstance(event, LedgerEntry)
                and self._outcomes.add(event)
                and event.source == LEARNER
                and event.version
            ):
                self._versions[event.group_id, event.policy] = event.version

    def add_call(self, call: LlmCall) -> None:
        """Add a call to its row, once."""
        if call.call_id in self._counted:
            return
        self._counted.add(call.call_id)
        row, tokens = self._row(self._key(call)), tokens_of(call)
        row.calls += 1
        row.calls_of_unknown_tokens += tokens.prompt is None or tokens.sampled is None
        row.prompt += tokens.prompt or 0
        row.sampled += tokens.sampled or 0
        if tokens.cached is None:
            row.maybe_cached += tokens.prompt or 0
        else:
            row.cached += tokens.cached
            row.not_cached += (tokens.prompt or 0) - tokens.cached
        if call.policy is not None and is_counted(call):
            self._add_actions(row, call)
        if self._prices is not None:
            price = price_of(self._prices, call.alias, call.backend)
            if price is None:
                self._unpriced.add(call.alias)
            else:
                _add_money(row, price_tokens(tokens, price))

    def table(self) -> CostTable:
        """Sort the rows and add them up."""
        place = _by_version if self._by is By.version else _by_tokens
        rows = tuple(sorted(self._rows.values(), key=place))
        return CostTable(
            by=self._by,
            currency=self._prices.currency if self._prices else None,
            rows=rows,
            total=_total(rows, self._prices is not None),
            unpriced=tuple(sorted(self._unpriced)),
        )

    def _add_update(self, update: PolicyUpdate, version: str) -> None:
        if version in self._counted:
            return
        self._counted.add(version)
        row = self._row(version if self._by is By.version else f"learner {update.policy}")
        found = [value for name, value in update.metrics.items() if name.startswith(_SECONDS)]
        row.learner_seconds += sum(found)
        row.updates_of_unknown_seconds += not found
        if self._prices is not None:
            per_hour = self._prices.learner_per_hour.get(update.policy)
            if per_hour is None:
                self._unpriced.add(f"learner {update.policy}")
            else:
                _add_money(row, price_seconds(sum(found), per_hour))

    def _add_actions(self, row: CostRow, call: LlmCall) -> None:
        for action, tokens in action_tokens(call).items():
            entry = self._outcomes.of(action)
            row.actions_of_unknown_tokens += tokens is None
            count = tokens or 0
            if entry is None and action not in self._dead:
                row.open += count
            elif entry is not None and entry.term is LedgerTerm.trained:
                row.trained += count
            else:
                reason = word_of(entry) if entry else DEAD
                row.discarded[reason] = row.discarded.get(reason, 0) + count

    def _row(self, key: str | None) -> CostRow:
        if key not in self._rows:
            self._rows[key] = CostRow(key=key, money=Money() if self._prices else None)
        return self._rows[key]

    def _key(self, call: LlmCall) -> str | None:
        match self._by:
            case By.run:
                return self.runs.get(call.group_id)
            case By.version:
                return self._versions.get((call.group_id, call.policy))
            case By.alias:
                return call.alias
            case _:
                return call.group_id


def _by_tokens(row: CostRow) -> tuple[bool, int, str]:
    return row.key is None, -row.prompt - row.sampled, row.key or ""


def _by_version(row: CostRow) -> tuple[bool, str, int, int]:
    try:
        version = parse_version(row.key or "")
    except MalformedVersion:
        return row.key is None, row.key or "", 0, 0
    return False, version.policy, version.epoch, version.step


def _add_money(row: CostRow, money: Money) -> None:
    row.money = (row.money or Money()) + money


def _total(rows: Iterable[CostRow], is_priced: bool) -> CostRow:
    total = CostRow(key="sum", money=Money() if is_priced else None)
    discarded: Counter[str] = Counter()
    for row in rows:
        for name in _SUMMED:
            setattr(total, name, getattr(total, name) + getattr(row, name))
        discarded.update(row.discarded)
        if row.money is not None:
            _add_money(total, row.money)
    total.discarded = dict(sorted(discarded.items()))
    return total


_SUMMED = tuple(
    name for name in CostRow.__struct_fields__ if name not in ("key", "discarded", "money")
)
