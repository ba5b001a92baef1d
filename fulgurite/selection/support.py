"""Decides whether a log supports an estimate of a candidate router, and by which episodes.

What a candidate would have earned can only be estimated from episodes that might have got the
variant that it would have given. An estimate without that is refused, with the variant's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fulgurite.errors import NoSupport
from fulgurite.events import EventStruct
from fulgurite.selection.logged import LoggedEpisode

LEAST_EFFECTIVE = 20.0
"""Effective sample size below which the intervals are not to be trusted."""
_CERTAIN = 1 - 1e-9
IMBALANCE = 0.05
DEVIATIONS = 4.0
"""A balance that is this many standard errors off, and by more than `IMBALANCE`, is no chance."""


class Supported(EventStruct, frozen=True, kw_only=True):
    """The episodes that an estimate may use."""

    episodes: tuple[LoggedEpisode, ...]
    weights: tuple[float, ...]
    """Of each episode: the candidate's share of its variant, over the propensity."""
    effective: float
    """Effective sample size."""
    without_propensity: int
    """Episodes left out: their variant was not drawn by a share, or is not in the log."""
    without_choice: int
    """Episodes left out: they were bound to get their variant, and the candidate has others."""


def supported(episodes: Sequence[LoggedEpisode], shares: Mapping[str, float]) -> Supported:
    """Select the episodes that say something about a candidate. Raises NoSupport.

    `shares`: the candidate's share of each variant; they add up to 1.
    """
    wanted = [variant for variant, share in shares.items() if share > 0]
    drawn = [episode for episode in episodes if episode.propensity]
    used = [one for one in drawn if (one.propensity or 0) < _CERTAIN or wanted == [one.variant]]
    for variant in wanted:
        _require_episodes(variant, episodes, used)
    for variant in wanted:
        _require_balance(variant, used)
    weights = [shares.get(one.variant or "", 0.0) / (one.propensity or 1.0) for one in used]
    effective = effective_size(weights)
    if effective < LEAST_EFFECTIVE:
        _refuse_small(used, weights, effective)
    return Supported(
        episodes=tuple(used),
        weights=tuple(weights),
        effective=effective,
        without_propensity=len(episodes) - len(drawn),
        without_choice=len(drawn) - len(used),
    )


def effective_size(weights: Sequence[float]) -> float:
    """Effective sample size of weighted values: (Σw)² / Σw².

    Source: Kish, Survey Sampling, 1965; Owen, Monte Carlo theory, methods and examples, 2013, 9.3.
    """
    return sum(weights) ** 2 / sum(weight * weight for weight in weights)


def _require_episodes(
    variant: str, episodes: Sequence[LoggedEpisode], used: Sequence[LoggedEpisode]
) -> None:
    if any(episode.variant == variant for episode in used):
        return
    count = sum(episode.variant == variant for episode in episodes)
    if count:
        raise NoSupport(
            f"none of the {count} episodes of {variant!r} was given it by a share below 1: their "
            "propensity is null or 1. Route a share of the rollouts to it beside the others first"
        )
    known = sorted({episode.variant for episode in episodes if episode.variant is not None})
    raise NoSupport(
        f"no episode in the log was answered by {variant!r}, so its propensity is 0; the log's "
        f"variants are: {', '.join(known) or 'none'}"
    )


def _require_balance(variant: str, used: Sequence[LoggedEpisode]) -> None:
    """Check that the variant had its share all the time.

    Weighted by 1/propensity, its episodes stand for all: these weights have the expectation 1.
    """
    weights = [
        1 / one.propensity if one.propensity and one.variant == variant else 0.0 for one in used
    ]
    mean = sum(weights) / len(weights)
    square = sum((weight - mean) ** 2 for weight in weights) / len(weights)
    error = math.sqrt(square / len(weights))
    if abs(mean - 1) > max(IMBALANCE, DEVIATIONS * error):
        raise NoSupport(
            f"by their propensities, the episodes of {variant!r} stand for {mean:.0%} of the log's "
            f"{len(used)}, and not for all: it had no share for a part of the time, or its "
            "episodes have a reward more or less often than others. Choose a time in which the "
            "route named it (--since)"
        )


def _refuse_small(
    used: Sequence[LoggedEpisode], weights: Sequence[float], effective: float
) -> None:
    squares: dict[str, float] = {}
    for one, weight in zip(used, weights, strict=True):
        name = one.variant or ""
        squares[name] = squares.get(name, 0.0) + weight * weight
    heaviest = max(squares, key=lambda name: squares[name])
    raise NoSupport(
        f"the effective sample size is {effective:.1f} of {len(used)} episodes, and at least "
        f"{LEAST_EFFECTIVE:g} are needed: the log has too few episodes of {heaviest!r}. Read more "
        "of it (--since), or route a greater share to it"
    )
