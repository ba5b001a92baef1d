"""Joins `episodes` and `agent.rewards` into one score for each rollout of a run. No I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

import msgspec

from fulgurite.enums import EpisodeOutcome
from fulgurite.events import AgentReward, Episode
from fulgurite.failures import FailureKind
from fulgurite.groups.rewards import LARGEST_TOTAL, is_bounded
from fulgurite.learning.intervals import Estimate, estimate


class Score(msgspec.Struct):
    """What is known of one rollout."""

    group_id: str
    rollout_id: str
    attempt: int = 0
    closed: bool = False
    outcome: EpisodeOutcome = EpisodeOutcome.unknown
    failure: FailureKind | None = None
    version: str | None = None
    calls: int = 0
    reward: float | None = None
    """The weighted sum of `rewards`, once all expected ones are there; None if one of them could
    not be computed.
    """
    rewards: dict[str, float | None] = {}
    """Values by name, with those of the rollout's actions; None for a reward that could not be
    computed.
    """
    error: str | None = None


class _Target(NamedTuple):
    """What a reward is for: a rollout or, with a call, one action."""

    name: str
    call_id: str | None
    choice: int | None


class _Paid(NamedTuple):
    value: float | None
    final: bool


class CurvePoint(msgspec.Struct, frozen=True):
    """The mean reward of rollouts by the version that answered their first call of the policy."""

    version: str
    reward: float
    rollouts: int
    components: dict[str, float] = {}
    """Means of the named rewards, if there are several."""


class Scoreboard:
    """Collects the scores of a run's rollouts."""

    def __init__(
        self, expected: Collection[str], weights: Mapping[str, float], policy: str = "policy"
    ) -> None:
        """`expected`: names of the rewards that a rollout waits for. `weights`: 1 if not given.
        `policy`: whose versions rollouts are counted by.
        """
        self._policy = policy
        self._expected = set(expected)
        self._weights = dict(weights)
        self._scores: dict[str, Score] = {}
        self._paid: defaultdict[str, dict[_Target, _Paid]] = defaultdict(dict)
        self._calls: dict[str, set[str]] = {}
        self._groups: defaultdict[str, list[Score]] = defaultdict(list)

    def expect(self, group_id: str, rollout_id: str) -> None:
        """Add a rollout that was declared."""
        score = self._scores[rollout_id] = Score(group_id, rollout_id)
        self._groups[group_id].append(score)

    def on_episode(self, episode: Episode) -> None:
        """Add an attempt that has ended."""
        score = self._scores.get(episode.rollout_id)
        if score is None or episode.will_retry or episode.attempt < score.attempt:
            return
        score.attempt, score.closed = episode.attempt, True
        score.outcome, score.failure, score.calls = (
            episode.outcome,
            episode.failure,
            len(episode.calls),
        )
        versions = [call.version_first for call in episode.calls if call.version_first]
        own = [version for version in versions if version.startswith(f"{self._policy}@")]
        score.version = next(iter(own or versions), None)
        self._calls[episode.rollout_id] = {call.call_id for call in episode.calls}
        self._add_up(score)

    def on_reward(self, reward: AgentReward) -> None:
        """Add a reward, with or without a value."""
        score = self._scores.get(reward.rollout_id)
        if score is None:
            return
        if not reward.final and reward.call_id is None:
            return
        if reward.attempt is not None and reward.attempt < score.attempt:
            return
        value = reward.value
        if value is not None and not is_bounded(value, LARGEST_TOTAL):
            value, score.error = (
                None,
                f"{reward.name!r} is {value:g}, which is too large to be trained",
            )
        target = _Target(reward.name, reward.call_id, reward.choice)
        self._paid[reward.rollout_id][target] = _Paid(value, reward.final)
        self._add_up(score)
        score.error = reward.error if reward.value is None else score.error

    def open_groups(self) -> set[str]:
        """The groups with a rollout that is not done."""
        return {score.group_id for score in self._scores.values() if not self._is_done(score)}

    def __contains__(self, rollout_id: str) -> bool:
        """Whether the rollout belongs to this run."""
        return rollout_id in self._scores

    def groups(self) -> list[str]:
        """The declared groups, in order."""
        return list(self._groups)

    def scores(self, group_id: str) -> list[Score]:
        """The scores of a group's rollouts."""
        return self._groups.get(group_id, [])

    def is_done(self, group_id: str) -> bool:
        """Whether every rollout of the group has ended and has its rewards."""
        scores = self.scores(group_id)
        return bool(scores) and all(self._is_done(score) for score in scores)

    def has_ended(self, group_id: str) -> bool:
        """Whether every rollout of the group has ended."""
        return all(score.closed for score in self.scores(group_id))

    def closed(self) -> int:
        """How many rollouts have ended."""
        return sum(score.closed for score in self._scores.values())

    def unpaid(self) -> int:
        """How many rollouts have ended and lack a reward that they wait for."""
        return sum(score.closed and not self._is_done(score) for score in self._scores.values())

    def mean(self) -> Estimate | None:
        """The mean reward over all rollouts that have one; None without any."""
        groups: defaultdict[str, list[float]] = defaultdict(list)
        for score in self._scores.values():
            if score.reward is not None:
                groups[score.group_id].append(score.reward)
        return estimate(list(groups.values()))

    def reward_of(self, version: str) -> CurvePoint | None:
        """The mean reward of the rollouts that began with a version; None without any."""
        scores = [
            score
            for score in self._scores.values()
            if score.version == version and score.reward is not None
        ]
        return (
            CurvePoint(
                version,
                fmean(score.reward or 0.0 for score in scores),
                len(scores),
                self._means(scores),
            )
            if scores
            else None
        )

    def components(self) -> dict[str, float]:
        """Means of the named rewards, over the rollouts that have them.

        Empty if the only reward is the only expected one.
        """
        return self._means(self._scores.values())

    def curve(self) -> list[CurvePoint]:
        """Mean rewards by version, in the order in which the versions were first used."""
        versions = dict.fromkeys(score.version for score in self._scores.values() if score.version)
        return [point for version in versions if (point := self.reward_of(version)) is not None]

    def recent(self, count: int) -> float | None:
        """Mean reward of the last `count` rollouts with a reward, in the order of declaration."""
        rewards = [score.reward for score in self._scores.values() if score.reward is not None][
            -count:
        ]
        return sum(rewards) / len(rewards) if rewards else None

    def counts(self) -> dict[str, int]:
        """Count the rollouts: declared, finished, failed by kind, and scored; and their calls."""
        counted: defaultdict[str, int] = defaultdict(int, declared=len(self._scores))
        for score in self._scores.values():
            if score.closed:
                if score.failure is None or score.outcome is EpisodeOutcome.finished:
                    counted[score.outcome.value] += 1
                if score.failure is not None:
                    counted[score.failure.value] += 1
            counted["scored"] += score.reward is not None
            counted["calls"] += score.calls
        return dict(counted)

    def rows(self) -> list[dict[str, Any]]:
        """Every rollout, as JSON values."""
        return [msgspec.to_builtins(score) for score in self._scores.values()]

    def _is_done(self, score: Score) -> bool:
        return score.closed and self._expected <= score.rewards.keys()

    def _add_up(self, score: Score) -> None:
        """Sum the rewards of the rollout and of its actions, once a name has a final one."""
        if not self._expected:
            return
        calls = self._calls.get(score.rollout_id, set())
        counted = {
            target: paid
            for target, paid in self._paid[score.rollout_id].items()
            if target.call_id is None or target.call_id in calls
        }
        score.rewards = {}
        for name in dict.fromkeys(target.name for target, paid in counted.items() if paid.final):
            values = [paid.value for target, paid in counted.items() if target.name == name]
            given = [value for value in values if value is not None]
            score.rewards[name] = sum(given) if len(given) == len(values) else None
        score.reward = self._sum(score.rewards)

    def _sum(self, rewards: Mapping[str, float | None]) -> float | None:
        if not self._expected <= rewards.keys() or None in rewards.values():
            return None
        total = sum(
            self._weights.get(name, 1.0) * (value or 0.0) for name, value in rewards.items()
        )
        return total if is_bounded(total, LARGEST_TOTAL) else None

    def _means(self, scores: Iterable[Score]) -> dict[str, float]:
        values: defaultdict[str, list[float]] = defaultdict(list)
        for score in scores:
            for name, value in score.rewards.items():
                # A single expected reward is the reward itself.
                if value is not None and {name} != self._expected:
                    values[name].append(value)
        return {name: fmean(values[name]) for name in sorted(values)}
