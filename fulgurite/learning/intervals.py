"""Computes means with 95% intervals: Wilson's for rewards of 0 and 1, Student's t for others.

`estimate_gap` compares samples that are not paired: Agresti and Caffo's bounds for values of 0 and
1, Welch's for others.

Where groups have more than one value, each group counts once. If all values are equal they say
nothing about their spread, so there is no interval, except for rewards of 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, variance

import msgspec

_ERROR = 0.05
"""Probability that an interval misses, unless another one is asked for."""
_Z = 1.959964
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5% quantiles of Student's t for 1 to 30 degrees of freedom, from tables, to three decimals."""
_BISECTIONS = 60
"""As many as a float has bits for."""


class Estimate(msgspec.Struct, frozen=True):
    """A mean, the bounds of its interval (None if there is none), 95% unless another probability
    was asked for, and the number of values.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f} (n = {self.count}, too few or too equal for an interval)"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.count})"


class GroupedValues(msgspec.Struct, frozen=True):
    """What an estimate needs of values in groups: a database can add it up. Groups without a value
    are left out.
    """

    count: int
    """Number of values."""
    mean: float
    groups: int
    largest: int
    """Values of the largest group."""
    is_binary: bool
    """Whether all values are 0 or 1."""
    is_alike: bool
    """Whether all groups have the same mean."""
    standard_error: float | None
    """Of the mean of the groups' means; None for one group."""


def estimate(groups: Sequence[Sequence[float]]) -> Estimate | None:
    """Estimate the mean over all values; None without any.

    Rollouts of one task are not independent, so the interval is over the means of the groups.
    """
    values = [value for group in groups for value in group]
    if not values:
        return None
    means = [sum(group) / len(group) for group in groups if group]
    return estimate_of(
        GroupedValues(
            count=len(values),
            mean=sum(values) / len(values),
            groups=len(means),
            largest=max(map(len, groups)),
            is_binary=all(value in (0.0, 1.0) for value in values),
            is_alike=max(means) == min(means),
            standard_error=_standard_error(means),
        )
    )


def estimate_of(values: GroupedValues) -> Estimate:
    """Estimate the mean over all values from their sums, as `estimate` does."""
    if values.is_binary and (values.is_alike or values.largest <= 1):
        low, high = _wilson(values.mean, values.groups)
    else:
        low, high = _student_interval(
            values.mean, values.groups, values.is_alike, values.standard_error
        )
        if values.is_binary and low is not None and high is not None:
            low, high = max(0.0, low), min(1.0, high)
    return Estimate(values.mean, low, high, values.count)


def _standard_error(means: Sequence[float]) -> float | None:
    return math.sqrt(_squared_error(means)) if len(means) > 1 else None


def _student_interval(
    mean: float,
    groups: int,
    is_alike: bool,
    standard_error: float | None,
    error: float = _ERROR,
) -> tuple[float, float] | tuple[None, None]:
    """Student's interval; None if the means differ by less than the precision of a float."""
    if is_alike or standard_error is None:
        return (None, None)
    half = _student(groups - 1, error) * standard_error
    return (mean - half, mean + half) if mean - half < mean + half else (None, None)


def _student(degrees: int, error: float) -> float:
    """The quantile that Student's t exceeds, on either side, with this probability.

    From the table, from the distribution, or by Cornish and Fisher's expansion.
    """
    if degrees > len(_T):
        return _expanded(NormalDist().inv_cdf(1 - error / 2), degrees)
    return _T[degrees - 1] if error == _ERROR else _quantile(degrees, error)


def _quantile(degrees: int, error: float) -> float:
    """The same by bisection over angles, whose tangent is the quantile over √degrees."""
    low, high = 0.0, math.pi / 2
    for _ in range(_BISECTIONS):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, degrees) < 1 - error else (low, angle)
    return math.tan(low) * math.sqrt(degrees)


def _within(angle: float, degrees: int) -> float:
    """Probability that Student's t is no further from 0 than √degrees times an angle's tangent.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    is_odd = degrees % 2
    term, total = (math.cos(angle) if is_odd else 1.0), 0.0
    for place in range(degrees // 2):
        total += term
        above = 2 * place + 1 + is_odd
        term *= above / (above + 1) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if is_odd else total


def _expanded(z: float, degrees: float) -> float:
    """Student's quantile from the normal one. To two decimals from 29 degrees on."""
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _wilson(mean: float, count: int) -> tuple[float, float]:
    square = _Z * _Z / count
    centre = (mean + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(mean * (1 - mean) / count + square / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def estimate_difference(differences: Sequence[float], error: float = _ERROR) -> Estimate:
    """Estimate the mean of paired differences, at least one, by Student's t."""
    return estimate_by_student([[difference] for difference in differences], error)


def estimate_by_student(groups: Sequence[Sequence[float]], error: float = _ERROR) -> Estimate:
    """Estimate the mean over all values, at least one, by Student's t over the groups' means.

    For differences and weighted values, which are no shares even where all are 0 or 1. `error`:
    probability that the interval misses the mean.
    """
    values = [value for group in groups for value in group]
    mean = sum(values) / len(values)
    means = [sum(group) / len(group) for group in groups]
    is_alike = max(means) == min(means)
    low, high = _student_interval(mean, len(means), is_alike, _standard_error(means), error)
    return Estimate(mean, low, high, len(values))


def estimate_gap(
    baseline: Sequence[float], candidate: Sequence[float], error: float = _ERROR
) -> Estimate:
    """Estimate how much more the mean of `candidate` is than that of `baseline`, at least 30 values
    each. `count` is the number of values of `candidate`.

    `error`: probability that the interval misses the difference. Source: Agresti and Caffo, Simple
    and effective confidence intervals for proportions, The American Statistician 54, 2000; Welch,
    Biometrika 34, 1947.
    """
    gap = sum(candidate) / len(candidate) - sum(baseline) / len(baseline)
    z = NormalDist().inv_cdf(1 - error / 2)
    if all(value in (0.0, 1.0) for value in (*baseline, *candidate)):
        # One success and one failure more in each, so that equal values have a width.
        ones, others = _with_two_more(candidate), _with_two_more(baseline)
        centre = ones[0] - others[0]
        half = z * math.sqrt(ones[1] + others[1])
        return Estimate(gap, max(-1.0, centre - half), min(1.0, centre + half), len(candidate))
    ones, others = _squared_error(candidate), _squared_error(baseline)
    total = ones + others
    if total == 0.0:
        return Estimate(gap, gap, gap, len(candidate))
    degrees = total**2 / (ones**2 / (len(candidate) - 1) + others**2 / (len(baseline) - 1))
    half = _expanded(z, degrees) * math.sqrt(total)
    return Estimate(gap, gap - half, gap + half, len(candidate))


def _with_two_more(values: Sequence[float]) -> tuple[float, float]:
    """The share of ones with a one and a zero more, and the square of its error."""
    count = len(values) + 2
    share = (sum(values) + 1) / count
    return share, share * (1 - share) / count


def _squared_error(values: Sequence[float]) -> float:
    """The square of the mean's standard error, of two values at least."""
    return variance(values) / len(values)
