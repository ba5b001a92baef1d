"""Which closings of a group to write.

**With unchanged rules** a replay follows the log. A closing is a function of the episodes and
rewards that the rewarder held, and it held what the first so many records of `episodes` and
`agent.rewards` say: both are read in order. When it closed, wall time had its part (a deadline, a
reward that came late), but what it closed with is recorded: the ids of rows and tombstones are
hashes of the group revision, which is a hash of all that was written. So the replay closes the
group with everything there is and, until it has met every id that is in `trajectories`, with fewer
rewards, then with earlier revisions of its episodes (their inputs are listed in `episodes`). Every
closing in `trajectories` is written again, in its order; what cannot be met is told (`unmet`). A
group that was never closed is written if it is complete or due, as the rewarder would.

**With changed rules** nothing of the past binds: each group that is complete or due is closed once,
with everything the log holds, late calls and late rewards too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from fulgurite.events import AgentReward, Declaration, Episode, Record, Tombstone, Trajectory
from fulgurite.groups.closing import DEFAULT_CREDIT, awaits_episodes, awaits_rewards, close_group
from services.replay.groups import Group, Key
from services.rewarder.closing_settings import ClosingSettings

Row = Trajectory | Tombstone
History = Callable[[], Sequence[Episode]]
"""Every revision of the group's episodes that was written, in the order of the log."""

_TRIALS = 4_096
"""A group of 8 that was amended thirty times has some 2,000 pairs of beginnings."""


class Changes(Record, frozen=True, kw_only=True):
    """What is to be different from the live rules."""

    credit: str | None = None
    """Another credit rule."""
    weights: Mapping[str, float] = {}
    """Other weights of named rewards."""
    judged: bool = False
    """Whether another reward function's verdicts stand in for those of the log."""

    @property
    def none(self) -> bool:
        """Whether the rules are the live ones."""
        return self.credit is None and not self.weights and not self.judged


class Closing(Record, frozen=True, kw_only=True):
    """What a group gives."""

    rows: tuple[Row, ...]
    """Of all its closings, in order."""
    open: bool = False
    """Neither complete nor due: left to the live rewarder."""
    unmet: int = 0
    """Rows in `trajectories` that could not be computed again."""


def follow(group: Group, settings: ClosingSettings, now: int, history: History) -> Closing:
    """The closings of a group as the log has them. Raises UnknownRule."""
    if not group.row_ids:
        return close_anew(group, group.episodes(), group.rewards, Changes(), settings, now)
    wanted = set(group.row_ids)
    found: dict[str, Row] = {}
    rules = settings.rules()
    for episodes, rewards in _beginnings(group, history):
        rows = _rows(close_group(group.group_id, group.declaration, episodes, rewards, rules))
        found.update({row.event_id: row for row in rows if row.event_id in wanted})
        if found.keys() == wanted:
            break
    return Closing(
        rows=tuple(_as_written([found[i] for i in group.row_ids if i in found])),
        unmet=len(wanted - found.keys()),
    )


def _as_written(rows: Iterable[Row]) -> Iterator[Row]:
    """Each revision as often as it was begun: after another it counts again. Its rows once."""
    revision: str | None = None
    seen: set[str] = set()
    for row in rows:
        if row.group_revision != revision:
            revision, seen = row.group_revision, set()
        if row.event_id not in seen:
            seen.add(row.event_id)
            yield row


def close_anew(
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
    declared = group.declaration
    waits = awaits_episodes(declared, episodes) or awaits_rewards(
        declared, episodes, rewards, rules
    )
    if not episodes or (waits and settings.due_at(declared, episodes) > now):
        return Closing(rows=(), open=True)
    declaration = changed(declared, episodes, changes)
    return Closing(rows=_rows(close_group(group.group_id, declaration, episodes, rewards, rules)))


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
    """What undeclared traffic is closed as: each rollout that was seen, one attempt, no
    expectations.
    """
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


def _beginnings(
    group: Group, history: History
) -> Iterator[tuple[Sequence[Episode], Sequence[AgentReward]]]:
    """What the rewarder may have held, likeliest first."""
    episodes = group.episodes()
    tried = 0
    for count in range(len(group.rewards), -1, -1):
        yield episodes, group.rewards[:count]
        tried += 1
    for held in _states(group, history()):
        for count in range(len(group.rewards), -1, -1):
            yield held, group.rewards[:count]
            tried += 1
            if tried > _TRIALS:
                return


def _states(group: Group, revisions: Sequence[Episode]) -> list[tuple[Episode, ...]]:
    """What was held after each record of `episodes`, the last one first."""
    held: dict[Key, Episode] = {}
    states: list[tuple[Episode, ...]] = []
    for written in revisions:
        key = (written.rollout_id, written.attempt)
        if key in held and not set(written.inputs) > set(held[key].inputs):
            continue
        rebuilt = group.episode(key, set(written.inputs))
        held[key] = (
            rebuilt if rebuilt is not None and rebuilt.revision == written.revision else written
        )
        states.append(tuple(held.values()))
    return states[::-1]


def _rows(outputs: Iterable[object]) -> tuple[Row, ...]:
    return tuple(output for output in outputs if isinstance(output, Trajectory | Tombstone))
