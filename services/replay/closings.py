"""Computes the closings of a group that a replay writes.

**With unchanged rules** a replay follows the log. A closing is a function of the episodes and
rewards that the rewarder held, and its `GroupClosed` names them. So each closing in `trajectories`
is computed again from the inputs it names, and written with its rows in the order of the log.
Records that cannot be computed to the same revision are reported (`unmet`). A group that was never
closed is closed if it is complete or due, as the rewarder would.

Rows written before December 2026 have no `GroupClosed`. They are searched for among the closings
that a rewarder would have written after each record of `episodes` and `agent.rewards`, in the order
of record times; docs/how-to/replay.md says what this misses. The next release drops this search.

**With changed rules** each group that is complete or due is closed once, with everything the log
holds, late calls and late rewards included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from fulgurite.enums import TrainingUse
from fulgurite.episodes.exclusions import ExclusionRule
from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.events import (
    AgentReward,
    Declaration,
    Episode,
    EventStruct,
    GroupClosed,
    LedgerEntry,
    Tombstone,
    Trajectory,
)
from fulgurite.groups.closing import DEFAULT_CREDIT, awaits_episodes, awaits_rewards, close_group
from fulgurite.groups.group_revisions import Output, group_closed
from fulgurite.groups.group_state import GroupState
from services.replay.groups import Group
from services.replay.tenants import Tenants
from services.rewarder.closing_settings import ClosingSettings

Row = Trajectory | Tombstone | GroupClosed
"""What a closing writes to `trajectories`."""


class WrittenEpisode(EventStruct, frozen=True, kw_only=True):
    """A revision of an episode as `episodes` has it."""

    episode: Episode
    timestamp: int
    """Unix time of its record in milliseconds."""


History = Callable[[], Sequence[WrittenEpisode]]
"""Every revision of the group's episodes that was written, in the order of the log."""


class Changes(EventStruct, frozen=True, kw_only=True):
    """How the replay's rules differ from the live ones."""

    credit: str | None = None
    """The credit rule to use instead."""
    weights: Mapping[str, float] = {}
    """The weights of named rewards to use instead."""
    exclusions: tuple[ExclusionRule, ...] | None = None
    """The rules for calls that are no part of the task, to use instead."""
    without: frozenset[str] = frozenset()
    """Subjects whose episodes are left out of training."""
    tenants: Tenants = Tenants()
    """Tenants whose groups are left out of training."""
    rescored: bool = False
    """Whether another reward function's rewards replace those of the log."""

    @property
    def none(self) -> bool:
        """Whether the rules are the live ones."""
        return self == Changes()


class Closing(EventStruct, frozen=True, kw_only=True):
    """The result for one group."""

    rows: tuple[Row, ...]
    """The rows of all its closings, in order."""
    open: bool = False
    """Whether it is neither complete nor due: the live rewarder will close it."""
    unmet: int = 0
    """Records in `trajectories` that could not be computed again."""


def follow(group: Group, settings: ClosingSettings, now: int, history: History) -> Closing:
    """Compute the closings of a group as the log has them. Raises UnknownRule."""
    if not group.row_ids:
        return reclose(group, group.episodes(), group.rewards, Changes(), settings, now)
    rules = settings.rules()
    named = _Named(group, history)
    found = {row.event_id: row for closed in group.closings for row in named.close(closed, rules)}
    missing = set(group.row_ids) - found.keys()
    unnamed = missing - {
        name for closed in group.closings for name in (closed.event_id, *closed.row_ids)
    }
    found |= _search(group, unnamed, history, rules)
    return Closing(
        rows=tuple(_as_written([found[i] for i in group.row_ids if i in found])),
        unmet=len(set(group.row_ids) - found.keys()),
    )


class _Named:
    """Finds the episodes and rewards of a group by the ids that a `GroupClosed` lists."""

    def __init__(self, group: Group, history: History) -> None:
        self._group = group
        self._history = history
        self._episodes = {episode.revision: episode for episode in group.episodes()}
        self._rewards = {reward.event_id: reward for reward in group.rewards}
        self._has_history = False

    def close(self, closed: GroupClosed, rules: FailureRules) -> tuple[Row, ...]:
        """Compute what the closing wrote. Raises UnknownRule.

        Empty if one of its inputs is gone, or if the rules give another revision.
        """
        state = GroupState()
        for event in (
            *map(self._episode, closed.episode_revisions),
            *map(self._rewards.get, closed.reward_ids),
        ):
            if event is None:
                return ()
            state.add(event)
        rows = _rows(state, self._group.group_id, rules, closed.supersedes)
        return rows if closed in rows else ()

    def _episode(self, revision: str) -> Episode | None:
        """Find a revision. Earlier revisions than the last are rebuilt, when first asked for, from
        the inputs that `episodes` lists.
        """
        if revision not in self._episodes and not self._has_history:
            self._has_history = True
            self._episodes |= {
                written.episode.revision: _rebuilt(self._group, written.episode)
                for written in self._history()
            }
        return self._episodes.get(revision)


def _search(
    group: Group, row_ids: set[str], history: History, rules: FailureRules
) -> dict[str, Row]:
    """Search for rows that have no `GroupClosed`: in the closing with all inputs, and in a closing
    after each record, in the order of record times.
    """
    found: dict[str, Row] = {}
    for state in _steps(group, history) if row_ids else ():
        # Such a log has no `GroupClosed`: what it would supersede does not matter.
        rows = _rows(state, group.group_id, rules, None)
        found.update({row.event_id: row for row in rows if row.event_id in row_ids})
        if found.keys() == row_ids:
            break
    return found


def _steps(group: Group, history: History) -> Iterator[GroupState]:
    """The states that the rewarder may have had, likeliest first."""
    yield _state_of(group.episodes(), group.rewards)
    logged = [(written.timestamp, 0, _rebuilt(group, written.episode)) for written in history()]
    paid = [(group.reward_times[reward.event_id], 1, reward) for reward in group.rewards]
    state = GroupState()
    for _, _, event in sorted([*logged, *paid], key=lambda record: record[:2]):
        if state.add(event):
            yield state


def _rebuilt(group: Group, written: Episode) -> Episode:
    """Stitch the episode again from the same inputs; where today's rules give another revision,
    return the one that was written.
    """
    rebuilt = group.episode((written.rollout_id, written.attempt), set(written.inputs))
    return rebuilt if rebuilt is not None and rebuilt.revision == written.revision else written


def _as_written(rows: Iterable[Row]) -> Iterator[Row]:
    """Each revision as often as the log begins it, each time with its rows once."""
    revision: str | None = None
    seen: set[str] = set()
    for row in rows:
        if row.group_revision != revision:
            revision, seen = row.group_revision, set()
        if row.event_id not in seen:
            seen.add(row.event_id)
            yield row


def reclose(
    group: Group,
    episodes: Sequence[Episode],
    rewards: Sequence[AgentReward],
    changes: Changes,
    settings: ClosingSettings,
    now: int,
) -> Closing:
    """One closing with these episodes and rewards, if the group is complete or due at `now` (Unix
    ms). Raises UnknownRule.
    """
    rules = settings.rules()
    is_tenants = changes.tenants.own(group.group_id)
    episodes = [_left_out(e) if is_tenants or e.subject in changes.without else e for e in episodes]
    if changes.exclusions is not None:
        rules = msgspec.structs.replace(rules, exclusions=changes.exclusions)
    declared = group.declaration
    waits = awaits_episodes(declared, episodes) or awaits_rewards(
        declared, episodes, rewards, rules
    )
    if not episodes or (waits and settings.due_at(declared, episodes) > now):
        return Closing(rows=(), open=True)
    outputs = close_group(
        group.group_id, changed(declared, episodes, changes), episodes, rewards, rules
    )
    return Closing(rows=_without_entries(outputs, group_closed(outputs, episodes, rewards, None)))


def _left_out(episode: Episode) -> Episode:
    """The episode as if its person had been left out of training when its calls were made."""
    calls = (
        msgspec.structs.replace(call, training_use=TrainingUse.excluded) for call in episode.calls
    )
    return msgspec.structs.replace(episode, calls=tuple(calls))


def changed(
    declaration: Declaration | None, episodes: Iterable[Episode], changes: Changes
) -> Declaration | None:
    """The declaration under which a group is closed: the live one but for the changes."""
    if changes.credit is None and not changes.weights:
        return declaration
    if declaration is None:
        declaration = _undeclared(episodes)
    return msgspec.structs.replace(
        declaration,
        credit_rule=changes.credit or declaration.credit_rule,
        reward_weights={**declaration.reward_weights, **changes.weights},
    )


def _undeclared(episodes: Iterable[Episode]) -> Declaration:
    """Declare undeclared traffic: its rollouts, one attempt each, no expected rewards."""
    episodes = list(episodes)
    return Declaration(
        rollout_ids=tuple(sorted({episode.rollout_id for episode in episodes})),
        deadline=0,
        credit_rule=DEFAULT_CREDIT,
        alias="",
        policy=next(
            (call.policy for episode in episodes for call in episode.calls if call.policy), None
        ),
        task="",
        max_attempts=1,
    )


def _state_of(episodes: Iterable[Episode], rewards: Iterable[AgentReward]) -> GroupState:
    state = GroupState()
    for event in (*episodes, *rewards):
        state.add(event)
    return state


def _rows(
    state: GroupState, group_id: str, rules: FailureRules, supersedes: str | None
) -> tuple[Row, ...]:
    outputs = state.close(group_id, rules)
    return _without_entries(outputs, state.closed(outputs, supersedes))


def _without_entries(outputs: Sequence[Output], closed: GroupClosed | None) -> tuple[Row, ...]:
    rows = tuple(output for output in outputs if not isinstance(output, LedgerEntry))
    return rows if closed is None else (*rows, closed)
