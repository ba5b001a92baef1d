"""Defines what credit rules see: the paths of an episode, and the scored episodes of its group.

A rule of one path is a plain function `Path -> list[float]`; `on_paths` makes it a rule of groups,
in which an action on several paths gets the mean. A rule that compares episodes is a function of
the group itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from fulgurite.events import EventStruct
from fulgurite.groups.rewards import SMALLEST_SPREAD, has_spread


class Step(EventStruct, frozen=True, kw_only=True):
    """An action on a path."""

    action: str
    """`call_id#choice`."""
    agent: str = ""
    """Role."""
    reward: float = 0.0
    """Weighted sum of what was paid at it."""
    state: bytes = b""
    """Hash of all tokens before it."""
    observation: bytes = b""
    """Hash of the tokens since the action before it: what a tool or a user said. Of all tokens
    before it, where there is none.
    """


class Path(EventStruct, frozen=True, kw_only=True):
    """One branch of an episode, from its first action to a leaf (see
    `fulgurite.trajectories.building.paths`).
    """

    steps: tuple[Step, ...]
    outcome: float
    """Weighted sum of what was paid to the episode as a whole."""
    total: float
    """The episode's reward: outcome and what was paid at any of its actions, on this path or not.
    """


class Scored(EventStruct, frozen=True, kw_only=True):
    """An episode with a reward. One that has none, or is dropped, is no part of its group's
    comparison.
    """

    total: float
    """The episode's reward."""
    paths: tuple[Path, ...] = ()
    """None if nothing of it can be trained: it still counts in baselines."""
    by_name: Mapping[str, float] = {}
    """Weighted sums of its rewards by name, whether paid to it or to its actions."""


Credits = Mapping[str, float]
"""By action."""

PathRule = Callable[..., list[float]]
"""`Path`, and the rule's parameters by name → a credit for each of its steps."""

GroupRule = Callable[..., list[Credits]]
"""The scored episodes of a group, and the rule's parameters by name → the credits of each."""


def on_paths(rule: PathRule) -> GroupRule:
    """The rule applied to every path alone."""

    def of_group(group: Sequence[Scored], **parameters: float | str) -> list[Credits]:
        return [
            mean_over_paths(episode, lambda path: rule(path, **parameters)) for episode in group
        ]

    return of_group


def mean_over_paths(episode: Scored, values: Callable[[Path], Sequence[float]]) -> dict[str, float]:
    """A value for each action: the mean over the paths through it."""
    given: dict[str, list[float]] = {}
    for path in episode.paths:
        for step, value in zip(path.steps, values(path), strict=True):
            given.setdefault(step.action, []).append(value)
    return {action: sum(found) / len(found) for action, found in given.items()}


def mean_and_scale(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, as the learner's estimator takes them of a group's
    rewards; 1 where there is no spread.
    """
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(values), spread if spread > SMALLEST_SPREAD else 1.0


def relative(value: float, among: Sequence[float], *, scaled: bool = True) -> float:
    """The value less the mean, in standard deviations; 0 where there is nothing to compare with."""
    mean, scale = mean_and_scale(among)
    return (value - mean) / (scale if scaled else 1.0) if has_spread(among) else 0.0
