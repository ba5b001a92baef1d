"""Compares what several versions earn on the same held-out tasks.

Differences are paired by task, so how hard a task is drops out. A task counts once, however many
rollouts it has, since these are not independent. Bounds are Student's; significance is by flipping
signs (Fisher 1935, "The Design of Experiments", section 21): if two versions are equal, each
difference is as likely with the other sign.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from fulgurite.learning.intervals import Estimate, estimate_difference

Rewards = Mapping[str, Sequence[float]]
"""Rewards of each task's rollouts."""

MARGIN = 0.02
"""How much worse than the baseline a version may be, with 95% confidence, to be promoted."""

ENOUGH_TASKS = 200
"""Fewer tasks tell too little to promote by."""

_EXACT = 12
"""Up to so many differences all patterns of signs are counted."""
_DRAWS = 20_000
_CHUNK = 1_000


class Difference(msgspec.Struct, frozen=True):
    """How much more a version earns than another, over the tasks that both have."""

    estimate: Estimate
    """Of the mean difference; `count` is the number of tasks."""
    p: float
    """Probability of so large a mean difference between equal versions, two-sided."""
    better: int
    """Tasks on which it earns more."""
    worse: int
    """Tasks on which it earns less."""


def compare_on_tasks(
    baseline: Rewards, candidate: Rewards, error: float = 0.05
) -> Difference | None:
    """The paired difference, candidate less baseline; None if no task has rewards of both.

    `error`: probability that its interval misses.
    """
    differences = [
        _mean(candidate[task]) - _mean(baseline[task])
        for task in sorted(baseline.keys() & candidate.keys())
        if baseline[task] and candidate[task]
    ]
    if not differences:
        return None
    return Difference(
        estimate_difference(differences, error),
        sign_flip_p(differences),
        sum(difference > 0 for difference in differences),
        sum(difference < 0 for difference in differences),
    )


def shortcoming(
    difference: Difference | None, margin: float = MARGIN, tasks: int = ENOUGH_TASKS
) -> str | None:
    """Why a version is not to be promoted over its baseline; None if it is.

    It is, if it is not worse by `margin` or more: the lower 95% bound of the difference on at
    least `tasks` tasks is above -`margin`.
    """
    if difference is None:
        return "the two have no task in common"
    estimate = difference.estimate
    if estimate.count < tasks:
        return f"they have {estimate.count} tasks in common, fewer than {tasks}"
    if estimate.low is None:
        return (
            f"the difference is {estimate.mean:+.3f} on each of {estimate.count} tasks, which has "
            "no bounds"
        )
    if estimate.low <= -margin:
        return (
            f"the lower bound of the difference, {estimate.low:+.3f}, is not above {-margin:+.3f}"
        )
    return None


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of a mean of paired differences: exact for few, else from random signs."""
    values = np.array([value for value in differences if value != 0.0])
    observed = abs(values.sum()) - 1e-9 * np.abs(values).sum()
    if len(values) <= _EXACT:
        patterns: list[tuple[float, ...]] = list(itertools.product((-1.0, 1.0), repeat=len(values)))
        signs = np.array(patterns)
        return int(np.count_nonzero(np.abs(signs @ values) >= observed)) / len(signs)
    chance = np.random.default_rng(0)
    hits = 0
    for _ in range(_DRAWS // _CHUNK):
        signs = np.where(chance.random((_CHUNK, len(values))) < 0.5, -1.0, 1.0)
        hits += int(np.count_nonzero(np.abs(signs @ values) >= observed))
    # The observed signs are one of the patterns.
    return (hits + 1) / (_DRAWS + 1)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Correct the p of several comparisons for their number (Holm 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    found = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        found[index] = largest
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
