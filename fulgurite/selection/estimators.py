"""Estimates what another router would have earned on logged episodes.

Both estimators return one value per episode. Their mean is the estimate, and their spread gives its
interval. The variant of an episode was drawn with a known propensity that no outcome influenced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from fulgurite.selection.logged import LoggedEpisode


class _Sum(msgspec.Struct):
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    def without(self, value: float) -> _Sum:
        return _Sum(self.total - value, self.count - 1)


def self_normalised(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Self-normalised inverse propensity scoring: V = Σwr / Σw, with w = π(variant) / propensity.

    An episode's value is V + w(r - V) / mean(w): the first order of V in the sums.

    Source: Swaminathan and Joachims, The Self-Normalized Estimator for Counterfactual Learning,
    NeurIPS 2015; for the variance, Owen, Monte Carlo theory, methods and examples, 2013, 9.2.
    """
    total = sum(weights)
    pairs = list(zip(values, weights, strict=True))
    mean = sum(weight * value for value, weight in pairs) / total
    return [mean + weight * (value - mean) * len(values) / total for value, weight in pairs]


def doubly_robust(
    episodes: Sequence[LoggedEpisode],
    values: Sequence[float],
    weights: Sequence[float],
    shares: Mapping[str, float],
) -> list[float]:
    """Doubly robust estimation: Σ π(a) q(x, a) + w (r - q(x, a)), each episode's value.

    The model q is the mean of a variant's episodes in the same context, and of all its episodes
    where the context has none. For an episode, it leaves that one out, so that the estimate is
    unbiased. Each variant of `shares` has an episode, and there are at least two.

    Source: Dudík, Langford and Li, Doubly Robust Policy Evaluation and Learning, ICML 2011; for
    leaving out, Chernozhukov et al., Double/debiased machine learning, 2018.
    """
    cells: dict[tuple[str, str | None], _Sum] = {}
    variants: dict[str | None, _Sum] = {}
    overall = _Sum()
    for one, value in zip(episodes, values, strict=True):
        cells.setdefault((one.cell, one.variant), _Sum()).add(value)
        variants.setdefault(one.variant, _Sum()).add(value)
        overall.add(value)
    found: list[float] = []
    for one, value, weight in zip(episodes, values, weights, strict=True):
        sums = (cells[one.cell, one.variant], variants[one.variant], overall)
        own = _mean_of(*(known.without(value) for known in sums))
        direct = sum(
            share
            * (
                own
                if variant == one.variant
                else _mean_of(cells.get((one.cell, variant), _Sum()), variants[variant])
            )
            for variant, share in shares.items()
            if share > 0
        )
        found.append(direct + weight * (value - own))
    return found


def _mean_of(*sums: _Sum) -> float:
    """The mean of the first that has values."""
    first = next(one for one in sums if one.count)
    return first.total / first.count
