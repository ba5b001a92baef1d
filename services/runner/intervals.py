"""Means with 95% intervals: Wilson's for rewards of 0 and 1, the normal one for others; groups are the units where n > 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

_Z = 1.959964


class Estimate(msgspec.Struct, frozen=True):
    """A mean, the bounds of its 95% interval, and from how many values."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.count})"


def estimate(groups: Sequence[Sequence[float]]) -> Estimate | None:
    """The mean over all values; rollouts of one task are not independent, so groups of several count once for the interval."""
    values = [value for group in groups for value in group]
    if not values:
        return None
    mean = sum(values) / len(values)
    if all(len(group) <= 1 for group in groups) and all(value in (0.0, 1.0) for value in values):
        return _wilson(mean, len(values))
    means = [sum(group) / len(group) for group in groups if group]
    if len(means) < 2:
        return Estimate(mean, mean, mean, len(values))
    centre = sum(means) / len(means)
    spread = math.sqrt(sum((value - centre) ** 2 for value in means) / (len(means) - 1) / len(means))
    return Estimate(mean, mean - _Z * spread, mean + _Z * spread, len(values))


def _wilson(mean: float, count: int) -> Estimate:
    square = _Z * _Z / count
    centre = (mean + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(mean * (1 - mean) / count + square / (4 * count))
    return Estimate(mean, max(0.0, centre - half), min(1.0, centre + half), count)
