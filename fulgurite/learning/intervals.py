"""Computes means with 95% intervals: Wilson's for rewards of 0 and 1, Student's t for others.

Where groups have more than one value, each group counts once. If all values are equal they say
nothing about their spread, so there is no interval, except for rewards of 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

_Z = 1.959964
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5% quantiles of Student's t for 1 to 30 degrees of freedom, from tables, to three decimals."""


class Estimate(msgspec.Struct, frozen=True):
    """A mean, the bounds of its 95% interval (None if there is none), and the number of values."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f} (n = {self.count}, too few or too equal for an interval)"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.count})"


def estimate(groups: Sequence[Sequence[float]]) -> Estimate | None:
    """Estimate the mean over all values; None without any.

    Rollouts of one task are not independent, so the interval is over the means of the groups.
    """
    values = [value for group in groups for value in group]
    if not values:
        return None
    mean = sum(values) / len(values)
    means = [sum(group) / len(group) for group in groups if group]
    binary = all(value in (0.0, 1.0) for value in values)
    alike = max(means) == min(means)
    if binary and (alike or all(len(group) <= 1 for group in groups)):
        low, high = _wilson(mean, len(means))
    else:
        low, high = (None, None) if alike else _student_interval(mean, means)
        if binary and low is not None and high is not None:
            low, high = max(0.0, low), min(1.0, high)
    return Estimate(mean, low, high, len(values))


def _student_interval(
    mean: float, means: Sequence[float]
) -> tuple[float, float] | tuple[None, None]:
    """Student's interval; None if the means differ by less than the precision of a float."""
    centre = sum(means) / len(means)
    error = math.sqrt(sum((value - centre) ** 2 for value in means) / (len(means) - 1) / len(means))
    half = _student(len(means) - 1) * error
    return (mean - half, mean + half) if mean - half < mean + half else (None, None)


def _student(degrees: int) -> float:
    """The quantile: from the table, or by Cornish and Fisher's expansion, to three decimals."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    return _Z + (_Z**3 + _Z) / (4 * degrees) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * degrees**2)


def _wilson(mean: float, count: int) -> tuple[float, float]:
    square = _Z * _Z / count
    centre = (mean + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(mean * (1 - mean) / count + square / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def estimate_difference(differences: Sequence[float]) -> Estimate:
    """Estimate the mean of paired differences, at least one, by Student's t."""
    return estimate_by_student([[difference] for difference in differences])


def estimate_by_student(groups: Sequence[Sequence[float]]) -> Estimate:
    """Estimate the mean over all values, at least one, by Student's t over the groups' means.

    For differences and weighted values, which are no shares even where all are 0 or 1.
    """
    values = [value for group in groups for value in group]
    mean = sum(values) / len(values)
    means = [sum(group) / len(group) for group in groups]
    alike = max(means) == min(means)
    low, high = (None, None) if alike else _student_interval(mean, means)
    return Estimate(mean, low, high, len(values))
