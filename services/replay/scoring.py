"""Computes the reward of each rollout of a rebuilt group, and compares two sets of rewards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean, pstdev, quantiles

from fulgurite.enums import FilterReason
from fulgurite.events import AgentReward, Declaration, Episode, EventStruct
from fulgurite.groups.closing import members
from fulgurite.groups.rewards import EpisodeRewards, combine, counted, has_spread
from services.replay.closings import Changes, changed
from services.replay.groups import Group


class Score(EventStruct, frozen=True, kw_only=True):
    """The reward of one rollout's last attempt."""

    episode: Episode
    reward: float | None
    """None if there is none; then see `reason`."""
    reason: FilterReason | None
    named: Mapping[str, float]
    """Unweighted values by name."""


class Spread(EventStruct, frozen=True, kw_only=True):
    """The distribution of some rewards."""

    count: int
    mean: float
    deviation: float
    lowest: float
    quartiles: tuple[float, ...]
    """Lower quartile, median, upper quartile."""
    highest: float


class Comparison(EventStruct, frozen=True, kw_only=True):
    """How a change of rewards affects many groups."""

    groups: int
    episodes: int
    before: Spread | None
    after: Spread | None
    signal_before: int
    """Number of groups with a training signal: their rewards differ."""
    signal_after: int
    flips: tuple[tuple[str, float, float], ...]
    """Rollouts that change rank in their group, with both rewards; the largest change first."""
    unscored: int
    """Number of rollouts that have no reward after the change."""


def scores(
    group: Group,
    episodes: Sequence[Episode] | None = None,
    rewards: Sequence[AgentReward] | None = None,
    weights: Mapping[str, float] | None = None,
) -> list[Score]:
    """Score a group's final attempts as a closing would, but without failure rules.

    `weights`: used instead of the declared ones.
    """
    episodes = group.episodes() if episodes is None else episodes
    paid = group.rewards if rewards is None else rewards
    finals = [
        member.final for member in members(group.declaration, episodes) if member.final is not None
    ]
    declaration = changed(group.declaration, episodes, Changes(weights=weights or {}))
    return [_score(declaration, episode, paid) for episode in finals]


def _score(
    declaration: Declaration | None, episode: Episode, rewards: Sequence[AgentReward]
) -> Score:
    combined = combine(declaration, counted(episode, rewards))
    if isinstance(combined, EpisodeRewards):
        return Score(episode=episode, reward=combined.total, reason=None, named=combined.named)
    return Score(episode=episode, reward=None, reason=combined, named={})


def spread(values: Sequence[float]) -> Spread | None:
    """Describe the distribution of some values; None without any."""
    if not values:
        return None
    cuts = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Spread(
        count=len(values),
        mean=fmean(values),
        deviation=pstdev(values),
        lowest=min(values),
        quartiles=tuple(cuts),
        highest=max(values),
    )


def compare(pairs: Iterable[tuple[Sequence[Score], Sequence[Score]]]) -> Comparison:
    """Compare groups before and after a change of rewards, given as pairs."""
    before: list[float] = []
    after: list[float] = []
    flips: list[tuple[str, float, float]] = []
    groups = episodes = unscored = 0
    signal = [0, 0]
    for old, new in pairs:
        groups += 1
        episodes += len(new)
        unscored += sum(score.reward is None for score in new)
        for place, side in enumerate((old, new)):
            signal[place] += has_signal(side)
        before += _rewards(old).values()
        after += _rewards(new).values()
        flips += _flips(_rewards(old), _rewards(new))
    return Comparison(
        groups=groups,
        episodes=episodes,
        before=spread(before),
        after=spread(after),
        signal_before=signal[0],
        signal_after=signal[1],
        flips=tuple(sorted(flips, key=lambda flip: (-abs(flip[2] - flip[1]), flip[0]))),
        unscored=unscored,
    )


def has_signal(side: Sequence[Score]) -> bool:
    """Whether a group has a training signal: two or more rewards that differ."""
    values = list(_rewards(side).values())
    return len(values) > 1 and has_spread(values)


def _rewards(side: Sequence[Score]) -> dict[str, float]:
    return {score.episode.rollout_id: score.reward for score in side if score.reward is not None}


def _flips(old: Mapping[str, float], new: Mapping[str, float]) -> list[tuple[str, float, float]]:
    flipped: set[str] = set()
    for one, other in combinations(sorted(old.keys() & new.keys()), 2):
        if (old[one] - old[other]) * (new[one] - new[other]) < 0:
            flipped |= {one, other}
    return [(rollout_id, old[rollout_id], new[rollout_id]) for rollout_id in sorted(flipped)]
