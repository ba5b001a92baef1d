"""Defines the input of credit rules: the paths of an episode, and the scored episodes of its group.

A rule for one path is a function `Path -> list[float]`; `on_paths` makes it a rule for groups, in
which an action on several paths gets the mean. A rule that compares episodes takes the group.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from fulgurite.events import EventStruct
from fulgurite.groups.rewards import SMALLEST_SPREAD, has_spread


class Step(EventStruct, frozen=True, kw_only=True):
    """One action on a path."""

    action: str
    """`call_id#choice`."""
    agent: str = ""
    """Role."""
    reward: float = 0.0
    """Weighted sum of its rewards."""
    state: bytes = b""
    """Hash of all tokens before it."""
    observation: bytes = b""
    """Hash of the tokens since the previous action (what a tool or a user said); for the first
    action, of all tokens before it.
    """


class Path(EventStruct, frozen=True, kw_only=True):
    """One branch of an episode, from its first action to a leaf (`trajectories.building.paths`)."""

    steps: tuple[Step, ...]
    outcome: float
    """Weighted sum of the rewards of the whole episode."""
    total: float
    """The episode's reward: the outcome and the rewards of all its actions, on any path."""


class Scored(EventStruct, frozen=True, kw_only=True):
    """An episode with a reward. Episodes without one, or dropped ones, are not compared."""

    total: float
    """The episode's reward."""
    paths: tuple[Path, ...] = ()
    """Empty if nothing of it can be trained; it still counts in baselines."""
    by_name: Mapping[str, float] = {}
    """Weighted sums of its rewards by name, those of its actions included."""


Credits = Mapping[str, float]
"""Credit by action."""

PathRule = Callable[..., list[float]]
"""From a `Path` and the rule's parameters to a credit for each step."""

GroupRule = Callable[..., list[Credits]]
"""From the scored episodes of a group and the rule's parameters to the credits of each episode."""


def on_paths(rule: PathRule) -> GroupRule:
    """Make a rule for groups that applies a rule to every path."""

    def of_group(group: Sequence[Scored], **parameters: float | str) -> list[Credits]:
        return [
            mean_over_paths(episode, lambda path: rule(path, **parameters)) for episode in group
        ]

    return of_group


def mean_over_paths(episode: Scored, values: Callable[[Path], Sequence[float]]) -> dict[str, float]:
    """Compute a value for each action: the mean over the paths through it."""
    given: dict[str, list[float]] = {}
    for path in episode.paths:
        for step, value in zip(path.steps, values(path), strict=True):
            given.setdefault(step.action, []).append(value)
    return {action: sum(found) / len(found) for action, found in given.items()}


def mean_and_scale(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, as in the learner's estimator; 1 without spread."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(values), spread if spread > SMALLEST_SPREAD else 1.0


def relative(value: float, among: Sequence[float], *, scaled: bool = True) -> float:
    """Subtract the mean and divide by the standard deviation; 0 without spread."""
    mean, scale = mean_and_scale(among)
    return (value - mean) / (scale if scaled else 1.0) if has_spread(among) else 0.0
