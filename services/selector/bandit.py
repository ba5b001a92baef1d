"""The contextual bandit: from what variants earned to the chance that each is the best.

A linear model with unknown noise for each variant: a mean, and how far each context cell differs
from it. Cells with few episodes stay near the mean. The chances are those with which Thompson
sampling picks a variant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from bayesianbandits import Arm, ContextualAgent, NormalInverseGammaRegressor, ThompsonSampling
from numpy.typing import NDArray

from fulgurite.selection.deciding import Chances, Observation

_DRAWS = 4_000
"""Posterior draws: a chance is right to within 0.02."""
_MEAN_PRECISION = 0.05
"""The prior of a mean, in units of the values' own spread: almost flat."""
_CELL_PRECISION = 1.0
"""The prior of a cell's difference: one standard deviation of the values."""
_SEED = 20_250


def chances(observations: Mapping[str, Sequence[Observation]], cells: Sequence[str]) -> Chances:
    """By cell, the chance of each variant to be the best. The same input gives the same output.

    Each variant has at least one observation. A cell of observations that is not in `cells` has no
    term of its own.
    """
    places = {cell: place for place, cell in enumerate(cells)}
    names = list(observations)
    agent = ContextualAgent(
        [Arm(name, learner=_learner(len(cells), seed)) for seed, name in enumerate(names, _SEED)],
        ThompsonSampling(),
        random_seed=_SEED,
    )
    centre, scale = _centre_and_scale(observations)
    for name in names:
        found = observations[name]
        agent.select_for_update(name).update(
            _features([places.get(one.cell, 0) for one in found], len(cells)),
            np.array([(one.value - centre) / scale for one in found]),
            np.array([one.weight for one in found]),
        )
    asked = _features(range(len(cells)), len(cells))
    draws = np.stack([agent.arm(name).sample(asked, _DRAWS) for name in names])
    best = draws.argmax(axis=0)
    return {
        cell: {name: float((best[:, place] == arm).mean()) for arm, name in enumerate(names)}
        for cell, place in places.items()
    }


def _learner(width: int, seed: int) -> NormalInverseGammaRegressor:
    precision = np.array([_MEAN_PRECISION, *[_CELL_PRECISION] * (width - 1)])
    return NormalInverseGammaRegressor(lam=precision, a=1.0, b=1.0, random_state=seed)


def _features(places: Sequence[int] | range, width: int) -> NDArray[np.float64]:
    """One row for each place: 1 for the mean, and 1 in the cell's column, which place 0 lacks."""
    rows = np.zeros((len(places), width))
    rows[np.arange(len(places)), list(places)] = 1.0
    rows[:, 0] = 1.0
    return rows


def _centre_and_scale(observations: Mapping[str, Sequence[Observation]]) -> tuple[float, float]:
    values = np.array([one.value for found in observations.values() for one in found])
    return float(values.mean()), float(values.std()) or 1.0
