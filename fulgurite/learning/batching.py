"""Makes batches of closed groups, and decides the outcome of every action.

A group is complete when all that its `GroupClosed` names is there; in logs without it, when every
member has all its rows or a tombstone. Complete groups are admitted oldest start first; those that
teach nothing fill no batch and are settled on the way. Of an admitted group each action that
carries loss is either trained, stale or filtered with a reason, and the ledger entries say so. A
newer revision that comes before its group is settled replaces the older one. A group is settled at
most once: rows that come again are ignored, and a newer revision of a settled group is an
amendment, which trains nothing (`fulgurite.learning.amendments`).

Numbers that no trainer can compute with are never given out (`fulgurite.groups.rewards`; an older
rewarder wrote them, or somebody else): an episode whose reward is too large or not finite has none,
and an action whose credit or log-probabilities are so is filtered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

from fulgurite.enums import FilterReason, LedgerTerm, Mode
from fulgurite.events import (
    Action,
    EventStruct,
    GroupClosed,
    LedgerEntry,
    Position,
    Tombstone,
    Trajectory,
)
from fulgurite.groups.credit import has_baseline
from fulgurite.groups.rewards import LARGEST_TOTAL, is_bounded
from fulgurite.ids import action_id, derive_id
from fulgurite.learning.comparison import compare, is_comparable, turns_in
from fulgurite.learning.lineage import Lineage, descends
from fulgurite.learning.members import Member, members_of
from fulgurite.tokens import all_finite, token_count
from fulgurite.trajectories.building import GREEDY
from fulgurite.versions import MalformedVersion, Version, parse_version

LEARNER = "learner"
"""The source of a learner's ledger entries."""


class BatchRules(EventStruct, frozen=True, kw_only=True):
    """The rules by which groups become batches."""

    groups_per_step: int = 8
    max_staleness: int = 8
    """In optimizer steps. Older actions are not trained, but their rewards stay in the baseline."""
    max_row_tokens: int = 4096
    """Longest row in tokens that the trainer takes."""
    tokens_per_step: int | None = None
    """Tokens to train that make a batch, instead of a number of groups."""
    baseline: Literal["group", "batch", "moving_average"] = "group"
    """What groups with fewer than two scored episodes are compared with; `group`: with nothing, so
    that they are not trained (`fulgurite.learning.baselines`).
    """


class TrainedAction(EventStruct, frozen=True, kw_only=True):
    """A trained action within a row."""

    action: str
    """`call_id#choice`."""
    start: int
    end: int
    logprobs: bytes
    """Behaviour log-probabilities, packed."""
    credit: float
    temperature: float
    turn: int = 0
    age: int = 0
    """Its staleness when its group was settled."""


class BatchRow(EventStruct, frozen=True, kw_only=True):
    """A row with at least one trained action."""

    token_ids: bytes
    actions: tuple[TrainedAction, ...]


class BatchEpisode(EventStruct, frozen=True, kw_only=True):
    """The rows of one episode that are trained."""

    rollout_id: str
    reward: float
    rows: tuple[BatchRow, ...]


class BatchGroup(EventStruct, frozen=True, kw_only=True):
    """One settled group."""

    group_id: str
    group_revision: str
    policy: str
    rewards: tuple[float, ...]
    """Of every scored episode, trained or not: what credits are compared with."""
    turns: Mapping[int, tuple[float, ...]] = {}
    """Under a rule that compares turns (`fulgurite.learning.comparison`), the credits that those of
    each turn are compared with, instead.
    """
    episodes: tuple[BatchEpisode, ...]
    """Episodes with trained actions; empty if the group has no training signal."""
    outcomes: Mapping[str, tuple[LedgerTerm, FilterReason | None]]
    """The outcome of each action that carries loss."""
    members: tuple[Member, ...] = ()
    """Its episodes, trained or not."""
    is_lone: bool = False
    """Whether it has nothing of its own to compare with."""
    by_turn: bool = False
    """Whether its credits are compared with those of the same turn."""
    rule_has_baseline: bool = False
    """Whether its credit rule has a baseline of its own (`fulgurite.groups.credit`)."""
    alias: str | None = None
    """The alias that it asked for; None in logs of earlier releases."""
    partition: int = 0
    offsets: tuple[int, int] = (0, 0)
    """Where its records are in the topic: the first, and the last."""


class ForeignRow(EventStruct, frozen=True, kw_only=True):
    """A row of another policy in a group: counted, and its episode's reward is compared; its
    actions are another learner's.
    """

    rollout_id: str
    rows_in_episode: int
    episode_reward: float | None


class PendingGroup(msgspec.Struct, kw_only=True):
    """A group that is not settled yet."""

    group_id: str
    group_revision: str
    partition: int
    first_offset: int
    last_offset: int
    group_size: int
    started_at: int
    rows: dict[str, Trajectory]
    """Of this learner's policy."""
    foreign_rows: dict[str, ForeignRow]
    tombstones: dict[str, Tombstone]
    closed: GroupClosed | None = None
    decided: tuple[Version, BatchGroup] | None = None
    """What would become of its actions at a version: it is asked again and again."""

    def concerns(self, policy: str) -> bool:
        """Whether the group has anything of a policy that its learner must account for."""
        return bool(self.rows) or any(stone.policy == policy for stone in self.tombstones.values())

    def is_complete(self) -> bool:
        """Whether all that was written of the revision is there, of whatever policy."""
        if self.closed is not None:
            seen = self.rows.keys() | self.foreign_rows.keys() | self.tombstones.keys()
            return seen >= set(self.closed.row_ids)
        # The record may be still to come, and logs of earlier releases have none.
        missing: dict[str, int] = {}
        for row in (*self.rows.values(), *self.foreign_rows.values()):
            missing[row.rollout_id] = missing.get(row.rollout_id, row.rows_in_episode) - 1
        members = missing.keys() | {stone.rollout_id for stone in self.tombstones.values()}
        return len(members) == self.group_size and not any(missing.values())


class RowBatcher:
    """Collects the records that a policy's learner reads, and makes batches. No clock, no I/O."""

    def __init__(self, policy: str, rules: BatchRules | None = None) -> None:
        self.policy = policy
        self.rules = rules or BatchRules()
        self._pending: dict[str, PendingGroup] = {}
        self._settled: dict[str, tuple[int, int]] = {}
        self._done: dict[str, str | None] = {}
        """Settled groups, with the last revision that the ledger knows."""
        self._amending: dict[str, PendingGroup] = {}
        self.lineage: Lineage | None = None
        """What the current version descends from; what others generated is stale. None: all do."""
        self._next: dict[int, int] = {}
        self._sorted: list[PendingGroup] | None = None

    def restore(
        self,
        positions: Iterable[Position],
        settled: Mapping[str, tuple[int, int]],
        done: Mapping[str, str | None] | None = None,
    ) -> None:
        """Continue from a checkpoint.

        `positions`: offsets to resume from. `settled`: groups settled above them (id → partition,
        last offset). `done`: the last revision of each settled group that the ledger knows.
        """
        self._next = {position.partition: position.offset for position in positions}
        self._settled = dict(settled)
        self._done = {**dict.fromkeys(settled), **(done or {})}

    def add(self, partition: int, offset: int, event: Trajectory | Tombstone | GroupClosed) -> bool:
        """Add a record; return whether it is news. Rows of other modes than `train` are passed
        over; those of other policies count until their group is complete.
        """
        self._next[partition] = offset + 1
        self._sorted = None
        if isinstance(event, GroupClosed):
            return self._close(offset, event)
        if event.mode is not Mode.train:
            return False
        if event.group_id not in self._done:
            news = self._add_to(self._pending, partition, offset, event)
            self._drop_if_foreign(event.group_id)
            return news
        return self._add_to_settled(partition, offset, event)

    def _close(self, offset: int, event: GroupClosed) -> bool:
        pending = self._pending.get(event.group_id) or self._amending.get(event.group_id)
        if pending is None or pending.group_revision != event.group_revision:
            return False
        pending.last_offset = offset
        pending.closed = event
        self._drop_if_foreign(event.group_id)
        return True

    def _drop_if_foreign(self, group_id: str) -> None:
        """Forget a complete group that has nothing of this policy: it must not hold the offset
        back.
        """
        pending = self._pending.get(group_id)
        if pending is not None and not pending.concerns(self.policy) and pending.is_complete():
            del self._pending[group_id]

    def _add_to_settled(self, partition: int, offset: int, event: Trajectory | Tombstone) -> bool:
        where = self._settled.get(event.group_id)
        accounted = self._done[event.group_id]
        begun = event.group_id in self._amending
        if (where is not None and offset <= where[1]) or (
            event.group_revision == accounted and not begun
        ):
            return False
        news = self._add_to(self._amending, partition, offset, event)
        pending = self._amending[event.group_id]
        if pending.group_revision == accounted and pending.is_complete():
            # The group is back at the revision that the ledger knows: nothing to amend.
            del self._amending[event.group_id]
        return news

    def _add_to(
        self,
        groups: dict[str, PendingGroup],
        partition: int,
        offset: int,
        event: Trajectory | Tombstone,
    ) -> bool:
        """Hold a record with the others of its revision; whether it is news."""
        pending = groups.get(event.group_id)
        if pending is None or pending.group_revision != event.group_revision:
            pending = groups[event.group_id] = PendingGroup(
                group_id=event.group_id,
                group_revision=event.group_revision,
                partition=partition,
                # Until the newer revision is whole, a resumed learner must find the older one.
                first_offset=pending.first_offset if pending else offset,
                last_offset=offset,
                group_size=event.group_size,
                started_at=event.group_started_at,
                rows={},
                foreign_rows={},
                tombstones={},
            )
        pending.last_offset = offset
        pending.decided = None
        if isinstance(event, Tombstone):
            return _put(pending.tombstones, event.event_id, event)
        if event.policy == self.policy:
            return _put(pending.rows, event.event_id, event)
        foreign = ForeignRow(
            rollout_id=event.rollout_id,
            rows_in_episode=event.rows_in_episode,
            episode_reward=event.episode_reward,
        )
        return _put(pending.foreign_rows, event.event_id, foreign)

    def amendments(self) -> tuple[PendingGroup, ...]:
        """Complete newer revisions of settled groups that the ledger does not know yet."""
        return tuple(pending for pending in self._amending.values() if pending.is_complete())

    def amend(self, pending: PendingGroup) -> None:
        """Note that the ledger entries of an amendment are made."""
        del self._amending[pending.group_id]
        self._done[pending.group_id] = pending.group_revision
        self._settled[pending.group_id] = (pending.partition, pending.last_offset)

    def waiting(self) -> int:
        """How many groups are not settled."""
        return len(self._pending)

    def complete(self) -> int:
        """How many groups are complete and not settled."""
        return len(self._complete())

    def next_batch(self, current: Version, *, partial: bool = False) -> tuple[BatchGroup, ...]:
        """Settle the next batch, oldest start first: as many groups that teach something as the
        rules say, or none; with `partial`, as many as there are.
        """
        return self._settle(self._batch(current, partial=partial))

    def has_batch(self, current: Version) -> bool:
        """Whether there is a whole batch."""
        return bool(self._batch(current, partial=False))

    def _batch(self, current: Version, *, partial: bool) -> list[tuple[PendingGroup, BatchGroup]]:
        chosen: list[tuple[PendingGroup, BatchGroup]] = []
        tokens = 0
        for one in self._ready(current):
            chosen.append(one)
            tokens += 0 if self.rules.tokens_per_step is None else trained_tokens(one[1])
            if self._is_enough(len(chosen), tokens) and not self._lacks_company(chosen):
                return chosen
        return chosen if partial and not self._lacks_company(chosen) else []

    def _is_enough(self, groups: int, tokens: int) -> bool:
        """Whether so many groups with so many tokens to train make a batch."""
        if self.rules.tokens_per_step is None:
            return groups >= self.rules.groups_per_step
        return tokens >= self.rules.tokens_per_step

    def _lacks_company(self, chosen: Sequence[tuple[PendingGroup, BatchGroup]]) -> bool:
        """Whether a lone group would be compared with itself."""
        return (
            self.rules.baseline == "batch"
            and any(group.is_lone for _, group in chosen)
            and sum(len(group.episodes) for _, group in chosen) < 2
        )

    def ready(self, current: Version) -> int:
        """Count the complete groups that teach something."""
        return len(self._ready(current))

    def without_signal(self, current: Version) -> tuple[BatchGroup, ...]:
        """Settle the complete groups that teach nothing: they fill no batch and wait for none."""
        return self._settle([one for one in self._decided(current) if not one[1].episodes])

    def _ready(self, current: Version) -> list[tuple[PendingGroup, BatchGroup]]:
        return [one for one in self._decided(current) if one[1].episodes]

    def _decided(self, current: Version) -> list[tuple[PendingGroup, BatchGroup]]:
        """The complete groups, oldest start first, and what would become of their actions now."""
        return [(pending, self._outcomes(pending, current)) for pending in self._complete()]

    def _complete(self) -> list[PendingGroup]:
        """The complete groups, oldest start first; they are looked for only after a change."""
        if self._sorted is None:
            self._sorted = sorted(
                (one for one in self._pending.values() if one.is_complete()),
                key=lambda one: (one.started_at, one.group_id),
            )
        return self._sorted

    def _outcomes(self, pending: PendingGroup, current: Version) -> BatchGroup:
        if pending.decided is None or pending.decided[0] != current:
            pending.decided = current, assign_outcomes(pending, current, self.rules, self.lineage)
        return pending.decided[1]

    def _settle(self, groups: Sequence[tuple[PendingGroup, BatchGroup]]) -> tuple[BatchGroup, ...]:
        self._sorted = None
        for pending, _ in groups:
            del self._pending[pending.group_id]
            self._settled[pending.group_id] = (pending.partition, pending.last_offset)
            self._done[pending.group_id] = pending.group_revision
        return tuple(group for _, group in groups)

    def positions(self) -> tuple[Position, ...]:
        """Offsets to resume from: everything below them is settled."""
        low = dict(self._next)
        for pending in (*self._pending.values(), *self._amending.values()):
            low[pending.partition] = min(low[pending.partition], pending.first_offset)
        return tuple(
            Position(partition=partition, offset=offset)
            for partition, offset in sorted(low.items())
        )

    def settled(self) -> dict[str, tuple[int, int]]:
        """Groups settled at or above these offsets, which a resumed learner reads again.

        Values are (partition, last offset).
        """
        low = {position.partition: position.offset for position in self.positions()}
        self._settled = {
            group_id: where
            for group_id, where in self._settled.items()
            if where[1] >= low.get(where[0], 0)
        }
        return dict(self._settled)


_T = TypeVar("_T")


def _put(held: dict[str, _T], name: str, value: _T) -> bool:
    """Hold a value by its name; whether the name is new."""
    known = name in held
    held[name] = value
    return not known


def assign_outcomes(
    pending: PendingGroup, current: Version, rules: BatchRules, lineage: Lineage | None = None
) -> BatchGroup:
    """Decide the outcome of every action of a complete group."""
    rows = sorted(pending.rows.values(), key=lambda row: (row.rollout_id, row.row_index))
    rewards = {
        member.rollout_id: member.episode_reward
        for member in (*pending.tombstones.values(), *pending.foreign_rows.values(), *rows)
    }
    scored = tuple(
        reward
        for _, reward in sorted(rewards.items())
        if reward is not None and is_bounded(reward, LARGEST_TOTAL)
    )
    compared = compare(rows, scored)
    is_lone = compared.teaches_nothing is FilterReason.no_baseline and rules.baseline != "group"
    outcomes: dict[str, tuple[LedgerTerm, FilterReason | None]] = {}
    episodes: dict[str, BatchEpisode] = {}
    for row in rows:
        actions: list[TrainedAction] = []
        for action, turn in turns_in(row):
            if not action.loss:
                continue
            of_group = None if is_lone else compared.teaches_nothing
            outcome = _outcome(row, action, of_group, current, rules, lineage)
            outcomes[action_id(action.call_id, action.choice)] = outcome
            if outcome[0] is LedgerTerm.trained:
                actions.append(_trained_action(action, turn, current))
        if actions:
            before = episodes.get(row.rollout_id)
            batch_row = BatchRow(token_ids=row.token_ids, actions=tuple(actions))
            episodes[row.rollout_id] = BatchEpisode(
                rollout_id=row.rollout_id,
                reward=row.episode_reward or 0.0,
                rows=(*(before.rows if before else ()), batch_row),
            )
    return BatchGroup(
        group_id=pending.group_id,
        group_revision=pending.group_revision,
        policy=current.policy,
        rewards=scored,
        turns=compared.turns,
        episodes=tuple(episodes.values()),
        outcomes=outcomes,
        members=members_of(rows, pending.tombstones.values()),
        is_lone=is_lone,
        by_turn=compared.by_turn,
        rule_has_baseline=any(has_baseline(row.credit_rule) for row in rows),
        alias=next((event.alias for event in (*rows, *pending.tombstones.values())), None),
        partition=pending.partition,
        offsets=(pending.first_offset, pending.last_offset),
    )


def trained_tokens(group: BatchGroup) -> int:
    """How many tokens of a group are trained."""
    return sum(
        action.end - action.start
        for episode in group.episodes
        for row in episode.rows
        for action in row.actions
    )


def untrained(group: BatchGroup, reason: FilterReason) -> BatchGroup:
    """The group as settled by a step that was not made: trained actions become filtered."""
    outcomes = {
        action: (LedgerTerm.filtered, reason) if outcome[0] is LedgerTerm.trained else outcome
        for action, outcome in group.outcomes.items()
    }
    return msgspec.structs.replace(group, episodes=(), outcomes=outcomes)


def ledger_entries(
    groups: Iterable[BatchGroup], version: Version, time_ms: int
) -> tuple[LedgerEntry, ...]:
    """Make one entry per group, term and reason.

    A group without actions gets an empty entry, which tells its runner that it is settled.
    """
    entries: list[LedgerEntry] = []
    for group in groups:
        sorted_out: dict[tuple[LedgerTerm, FilterReason | None], list[str]] = {}
        for action, outcome in sorted(group.outcomes.items()):
            sorted_out.setdefault(outcome, []).append(action)
        for (term, reason), actions in (
            sorted_out or {(LedgerTerm.filtered, FilterReason.missing): []}
        ).items():
            entries.append(ledger_entry(group, term, reason, actions, version, time_ms))
    return tuple(entries)


def ledger_entry(
    group: BatchGroup | PendingGroup,
    term: LedgerTerm,
    reason: FilterReason | None,
    actions: Iterable[str],
    version: Version,
    time_ms: int,
) -> LedgerEntry:
    """Make a learner's entry about a group's actions. Made again, it has the same id.

    The id depends on the policy, because several policies may settle the same revision: a replay
    with unchanged rules writes the rows of the live topic.
    """
    return LedgerEntry(
        event_id=derive_id(LEARNER, version.policy, group.group_revision, term, reason or ""),
        event_time=time_ms,
        policy=version.policy,
        group_id=group.group_id,
        group_revision=group.group_revision,
        term=term,
        reason=reason,
        actions=tuple(actions),
        version=str(version),
        source=LEARNER,
    )


def staleness(generated_by: Version, current: Version) -> int:
    """Batches between the version that generated an action and the current one."""
    return current.step - generated_by.step


def _version_of(text: str | None, current: Version) -> Version | None:
    """The version that generated an action; None if it is none of this policy."""
    try:
        version = parse_version(text or "")
    except MalformedVersion:
        return None
    return version if version.policy == current.policy else None


def _outcome(
    row: Trajectory,
    action: Action,
    of_group: FilterReason | None,
    current: Version,
    rules: BatchRules,
    lineage: Lineage | None,
) -> tuple[LedgerTerm, FilterReason | None]:
    if action.mask is not None:
        return LedgerTerm.filtered, action.mask
    if not _has_logprobs(action):
        return LedgerTerm.filtered, FilterReason.no_tokens
    if not GREEDY < action.temperature < math.inf:
        return LedgerTerm.filtered, FilterReason.untrainable_sampling
    if row.episode_reward is None:
        return LedgerTerm.filtered, FilterReason.no_reward
    if not is_comparable(row, action):
        return LedgerTerm.filtered, FilterReason.reward_failed
    if of_group is not None:
        return LedgerTerm.filtered, of_group
    generated_by = _version_of(action.version, current)
    if generated_by is None:
        return LedgerTerm.filtered, FilterReason.unknown_version
    if staleness(generated_by, current) > rules.max_staleness:
        return LedgerTerm.stale, None
    if lineage is not None and not descends(lineage, generated_by):
        return LedgerTerm.stale, None
    if token_count(row.token_ids) > rules.max_row_tokens:
        return LedgerTerm.filtered, FilterReason.oversized
    return LedgerTerm.trained, None


def _has_logprobs(action: Action) -> bool:
    """Whether each of its tokens has a finite log-probability."""
    logprobs = action.logprobs
    return (
        logprobs is not None
        and len(logprobs) == 4 * (action.end - action.start)
        and all_finite(logprobs)
    )


def _trained_action(action: Action, turn: int, current: Version) -> TrainedAction:
    return TrainedAction(
        action=action_id(action.call_id, action.choice),
        start=action.start,
        end=action.end,
        logprobs=action.logprobs or b"",
        credit=action.credit,
        temperature=action.temperature,
        turn=turn,
        age=staleness(parse_version(action.version or ""), current),
    )
