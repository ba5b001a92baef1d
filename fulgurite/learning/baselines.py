"""Baselines for groups that have none of their own: fewer than two scored episodes.

`pool` takes what is compared from the whole batch, `MovingAverages` from the batches before. Either
way a credit is compared with its own kind (`fulgurite.learning.comparison`): whole rewards with
whole rewards, returns with those of the same turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from fulgurite.events import EventStruct
from fulgurite.groups.rewards import SMALLEST_SPREAD
from fulgurite.learning.batching import BatchGroup
from fulgurite.learning.comparison import Credit, peers_by_turn

_EPISODES = "episodes"
_LAST_TURN = 63
"""Turns from here on have one average: an agent may take any number of them."""


class Pool(EventStruct, frozen=True):
    """What credits of a batch can be compared with."""

    rewards: tuple[float, ...]
    """Of its scored episodes."""
    turns: Mapping[int, tuple[float, ...]]
    """By turn, the credits of its trained actions under rules that compare turns."""

    def peers(self, group: BatchGroup, turn: int) -> tuple[float, ...]:
        """What a credit of a group is compared with.

        Where a single episode of the batch has a rule that compares turns, these are rewards, too.
        """
        return self.turns.get(turn, self.rewards) if group.by_turn else self.rewards


def pool(groups: Sequence[BatchGroup]) -> Pool:
    """Put the groups of a batch together."""
    returns = [one for group in groups if group.by_turn for one in _credits(group)]
    return Pool(
        tuple(reward for group in groups for reward in group.rewards), peers_by_turn(returns)
    )


class Average(EventStruct, frozen=True):
    """A moving average of values and of their squares."""

    mean: float
    square: float

    def advantage(self, credit: float, *, in_spreads: bool) -> float:
        """A credit less the mean; in standard deviations, if there is a spread."""
        spread = math.sqrt(max(0.0, self.square - self.mean**2))
        return (credit - self.mean) / (spread if in_spreads and spread > SMALLEST_SPREAD else 1.0)


class MovingAverages:
    """The averages of a policy's batches, by alias: of whole rewards, and of the returns of each
    turn.

    Aliases differ in who votes and on what, so a reward of one says little about another's. A
    function of the batches in their order: a learner that resumes has the same averages.
    """

    def __init__(self, decay: float) -> None:
        """`decay`: the share of an average that remains after a batch."""
        self._decay = decay
        self._averages: dict[str, Average] = {}

    def restore(self, state: Mapping[str, tuple[float, float]]) -> None:
        """Go on from a checkpoint."""
        self._averages = {kind: Average(mean, square) for kind, (mean, square) in state.items()}

    def state(self) -> dict[str, tuple[float, float]]:
        """What `restore` takes."""
        return {kind: (one.mean, one.square) for kind, one in self._averages.items()}

    def begin(self, groups: Sequence[BatchGroup]) -> None:
        """Take averages that do not exist yet from a batch that is to be trained, or from those of
        the policy that an earlier release wrote.
        """
        for (alias, kind), new in _averages(groups).items():
            known = self._averages.get(kind, new)
            self._averages.setdefault(_name(alias, kind), known)

    def observe(self, groups: Sequence[BatchGroup]) -> None:
        """Move the averages towards those of a batch that was trained."""
        for (alias, kind), new in _averages(groups).items():
            name = _name(alias, kind)
            old = self._averages.get(name, new)
            self._averages[name] = Average(
                self._decay * old.mean + (1 - self._decay) * new.mean,
                self._decay * old.square + (1 - self._decay) * new.square,
            )

    def of(self, group: BatchGroup, turn: int) -> Average:
        """What a credit of a group of the batch that was begun is compared with."""
        return self._averages[_name(group.alias, _kind(group, turn))]


def _averages(groups: Sequence[BatchGroup]) -> dict[tuple[str | None, str], Average]:
    """The averages of a batch, by alias and kind."""
    values: dict[tuple[str | None, str], list[float]] = {}
    for group in groups:
        if group.by_turn:
            for turn, _, value in _credits(group):
                values.setdefault((group.alias, _kind(group, turn)), []).append(value)
        else:
            values.setdefault((group.alias, _EPISODES), []).extend(group.rewards)
    return {
        kind: Average(fmean(found), fmean(value * value for value in found))
        for kind, found in values.items()
        if found
    }


def _name(alias: str | None, kind: str) -> str:
    """The name of an average in a checkpoint."""
    return kind if alias is None else f"{kind} of {alias}"


def _kind(group: BatchGroup, turn: int) -> str:
    return f"turn {min(turn, _LAST_TURN)}" if group.by_turn else _EPISODES


def _credits(group: BatchGroup) -> list[Credit]:
    return [
        Credit(action.turn, episode.rollout_id, action.credit)
        for episode in group.episodes
        for row in episode.rows
        for action in row.actions
    ]
