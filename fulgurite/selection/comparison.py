"""Compares the router of a log with a candidate: what each earns per episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fulgurite.errors import NoSupport
from fulgurite.events import EventStruct
from fulgurite.learning.intervals import Estimate, estimate, estimate_by_student
from fulgurite.selection.estimators import doubly_robust, self_normalised
from fulgurite.selection.logged import LoggedEpisode, Weights, earned
from fulgurite.selection.support import supported


class VariantEarnings(EventStruct, frozen=True, kw_only=True):
    """Means over the episodes that a variant answered."""

    variant: str
    episodes: int
    reward: float
    price: float | None
    """None where an episode has no price."""
    seconds: float
    earned: float


class RouterComparison(EventStruct, frozen=True, kw_only=True):
    """What two routers earn per episode, with 95% intervals."""

    episodes: int
    """Episodes used."""
    effective: float
    """Effective sample size of the candidate's estimates."""
    without_propensity: int
    without_choice: int
    """Episodes left out (`fulgurite.selection.support`)."""
    logged: Estimate
    candidate: Estimate
    """Doubly robust."""
    candidate_by_weighting: Estimate
    """By self-normalised inverse propensity scoring."""
    difference: Estimate
    """Candidate minus logged, doubly robust, paired by episode."""
    variants: tuple[VariantEarnings, ...]
    """In the order of their names."""


def compare_routers(
    episodes: Sequence[LoggedEpisode], shares: Mapping[str, float], weights: Weights
) -> RouterComparison:
    """Compare the router that wrote the log with one of other shares, which add up to 1.

    Raises NoSupport where the log cannot say it, BadPrices where a price is missing.
    """
    if not episodes:
        raise NoSupport("the log has no rewarded episode of this alias in this time")
    used = supported(episodes, shares)
    values = [earned(one, weights) for one in used.episodes]
    weighted = self_normalised(values, used.weights)
    robust = doubly_robust(used.episodes, values, used.weights, shares)
    differences = [new - old for new, old in zip(robust, values, strict=True)]
    logged = estimate(_grouped(used.episodes, values))
    assert logged is not None, "an effective size above 0 needs episodes"
    return RouterComparison(
        episodes=len(values),
        effective=used.effective,
        without_propensity=used.without_propensity,
        without_choice=used.without_choice,
        logged=logged,
        candidate=estimate_by_student(_grouped(used.episodes, robust)),
        candidate_by_weighting=estimate_by_student(_grouped(used.episodes, weighted)),
        difference=estimate_by_student(_grouped(used.episodes, differences)),
        variants=_by_variant(used.episodes, values),
    )


def _grouped(episodes: Sequence[LoggedEpisode], values: Sequence[float]) -> list[list[float]]:
    """The values of each group: rollouts of one task are not independent."""
    groups: dict[str, list[float]] = {}
    for one, value in zip(episodes, values, strict=True):
        groups.setdefault(one.group_id, []).append(value)
    return list(groups.values())


def _by_variant(
    episodes: Sequence[LoggedEpisode], values: Sequence[float]
) -> tuple[VariantEarnings, ...]:
    found: dict[str, list[tuple[LoggedEpisode, float]]] = {}
    for one, value in zip(episodes, values, strict=True):
        found.setdefault(one.variant or "", []).append((one, value))
    return tuple(_earnings(variant, found[variant]) for variant in sorted(found))


def _earnings(variant: str, pairs: Sequence[tuple[LoggedEpisode, float]]) -> VariantEarnings:
    count = len(pairs)
    prices = [one.price for one, _ in pairs if one.price is not None]
    return VariantEarnings(
        variant=variant,
        episodes=count,
        reward=sum(one.reward for one, _ in pairs) / count,
        price=sum(prices) / count if len(prices) == count else None,
        seconds=sum(one.seconds for one, _ in pairs) / count,
        earned=sum(value for _, value in pairs) / count,
    )
