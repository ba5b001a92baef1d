"""Compares variants while their shares change: differences with intervals that always hold.

An episode was given its variant by a known share that only earlier episodes influenced. So its
doubly robust values are unbiased whatever the shares were, and their mean has a confidence
sequence: an interval that may be looked at after every episode, and that is right at all times
together with the stated confidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fulgurite.events import VariantDifference
from fulgurite.selection.estimators import doubly_robust
from fulgurite.selection.logged import LoggedEpisode

_TIGHTEST_AT = 300
"""Groups at which the interval is narrowest, compared with one for this number alone."""
_LEAST = 20
"""Fewer groups say nothing about their spread."""


def compare_variants(
    episodes: Sequence[LoggedEpisode],
    values: Sequence[float],
    variants: Sequence[str],
    confidence: float,
) -> tuple[VariantDifference, ...]:
    """The best variant against each other one; nothing while there are too few episodes.

    `values`: what the episodes earned. Episodes without a propensity do not count. The confidence
    is that of all differences together.
    """
    drawn = [
        (one, value)
        for one, value in zip(episodes, values, strict=True)
        if one.propensity and one.variant in variants
    ]
    if len(variants) < 2 or {one.variant for one, _ in drawn} != set(variants):
        return ()
    used, paid = [one for one, _ in drawn], [value for _, value in drawn]
    robust = {variant: _values_of(variant, used, paid) for variant in variants}
    means = {variant: sum(found) / len(found) for variant, found in robust.items()}
    best = max(variants, key=lambda variant: (means[variant], variant))
    groups = _groups(used)
    if len(groups) < _LEAST:
        return ()
    error = (1 - confidence) / (len(variants) - 1)
    return tuple(
        _difference(best, other, robust, groups, error) for other in variants if other != best
    )


def half_width(count: int, deviation: float, error: float) -> float:
    """Half the width of an asymptotic confidence sequence for a mean.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Time-uniform central limit theory and
    asymptotic confidence sequences, Annals of Statistics 2024, equation 10, with ρ by their
    appendix B.2.
    """
    bound = -2 * math.log(error)
    rho = (bound + math.log(bound + 1)) / _TIGHTEST_AT
    scaled = count * rho + 1
    return deviation * math.sqrt(
        2 * scaled / (count * count * rho) * math.log(math.sqrt(scaled) / error)
    )


def _values_of(
    variant: str, episodes: Sequence[LoggedEpisode], values: Sequence[float]
) -> list[float]:
    weights = [1 / (one.propensity or 1.0) if one.variant == variant else 0.0 for one in episodes]
    return doubly_robust(episodes, values, weights, {variant: 1.0})


def _groups(episodes: Sequence[LoggedEpisode]) -> list[list[int]]:
    """The places of each group's episodes: rollouts of one task are not independent."""
    found: dict[str, list[int]] = {}
    for place, one in enumerate(episodes):
        found.setdefault(one.group_id, []).append(place)
    return list(found.values())


def _difference(
    best: str,
    other: str,
    robust: Mapping[str, Sequence[float]],
    groups: Sequence[Sequence[int]],
    error: float,
) -> VariantDifference:
    differences = [
        sum(robust[best][place] - robust[other][place] for place in group) / len(group)
        for group in groups
    ]
    count = len(differences)
    mean = sum(differences) / count
    deviation = math.sqrt(sum((one - mean) ** 2 for one in differences) / count)
    half = half_width(count, deviation, error)
    return VariantDifference(
        better=best, worse=other, mean=mean, low=mean - half, high=mean + half, groups=count
    )
