"""Makes shares of variants: raised to a floor, or proportioned for a comparison."""

from __future__ import annotations

from collections.abc import Mapping

_DIGITS = 4
_STEPS = 60


def raise_to_floors(wanted: Mapping[str, float], floors: Mapping[str, float]) -> dict[str, float]:
    """Shares that add up to 1, as near to those wanted as their floors allow.

    `wanted`: not negative, and not all 0. What the floors take, the others give in proportion.
    """
    low: set[str] = set()
    while True:
        free = [name for name in wanted if name not in low]
        left = 1 - sum(floors[name] for name in low)
        total = sum(wanted[name] for name in free)
        if not free or left <= 0 or total <= 0:
            total = sum(floors.values())
            return {name: round(floors[name] / total, _DIGITS) for name in wanted}
        found = {name: wanted[name] * left / total for name in free}
        below = {name for name, share in found.items() if share < floors[name]}
        if not below:
            shares = {name: found.get(name, floors[name]) for name in wanted}
            return {name: round(share, _DIGITS) for name, share in shares.items()}
        low |= below


def tracking_shares(means: Mapping[str, float]) -> dict[str, float]:
    """The shares with which the best of some variants is found soonest, by their means so far.

    Values of all variants have the same variance. With equal means at the top the two get half
    each.

    Source: Garivier and Kaufmann, Optimal Best Arm Identification with Fixed Confidence, COLT 2016,
    theorem 5: with `x_a` the share of another variant over that of the best, all
    `x_a / (1 + x_a) * gap_a²` are equal, and the squares of the `x_a` add up to 1.
    """
    best = max(means, key=lambda name: (means[name], name))
    gaps = {name: (means[best] - mean) ** 2 for name, mean in means.items() if name != best}
    nearest = min(gaps.values())
    if nearest <= 0:
        even = [name for name, gap in gaps.items() if gap <= 0]
        return {name: 1 / (len(even) + 1) * (name == best or name in even) for name in means}

    def ratios(level: float) -> dict[str, float]:
        return {name: level / (gap / nearest - level) for name, gap in gaps.items()}

    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        total = sum(ratio * ratio for ratio in ratios(middle).values())
        low, high = (middle, high) if total < 1 else (low, middle)
    found = {best: 1.0, **ratios(low)}
    total = sum(found.values())
    return {name: found[name] / total for name in means}
