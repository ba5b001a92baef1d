"""Finds variants whose episodes have a reward more or less often than others.

Only rewarded episodes say what a variant earns. Where users vote on what went well, or a variant's
failed episodes have no reward, these do not stand for all, and a comparison of them is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fulgurite.selection.outcomes import Outcome
from fulgurite.selection.support import DEVIATIONS, IMBALANCE, effective_size

_EQUAL = 1e-9
"""Shares that differ by less are the same."""


def find_uneven_rewards(outcomes: Mapping[str, Sequence[Outcome]], cut_share: float) -> str | None:
    """Say which variant's episodes are rewarded unlike all; None if none is.

    `outcomes`: by variant. `cut_share`: the share of a variant that a guard rail has cut. Episodes
    that a variant got by this share or less do not count: while its server is down, it has no
    rewards, and a comparison goes on afterwards. Episodes are weighted by 1/propensity, since their
    shares changed, and rewards may come late.
    """
    drawn = {
        variant: [
            (one.is_rewarded, 1 / one.episode.propensity)
            for one in found
            if one.episode.propensity and one.episode.propensity > cut_share + _EQUAL
        ]
        for variant, found in outcomes.items()
    }
    rewarded = [is_rewarded for found in drawn.values() for is_rewarded, _ in found]
    if not any(rewarded):
        return None
    overall = sum(rewarded) / len(rewarded)
    uneven: list[tuple[float, str]] = []
    for variant, found in drawn.items():
        if found:
            weights = [weight for _, weight in found]
            share = sum(weight for is_rewarded, weight in found if is_rewarded) / sum(weights)
            # The variant's episodes are among all, so both shares vary together.
            variance = max(1 / effective_size(weights) - 1 / len(rewarded), 0.0)
            error = math.sqrt((1 - overall) / overall * variance)
            if abs(share / overall - 1) > max(IMBALANCE, DEVIATIONS * error):
                uneven.append((share, variant))
    if not uneven:
        return None
    share, variant = min(uneven)
    return (
        f"{share:.0%} of the episodes of {variant!r} have a reward, and {overall:.0%} of all, so "
        "the rewarded ones do not stand for the others"
    )
