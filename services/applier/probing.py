"""Proof that an engine serves what was trained: its log-probabilities of a prompt against those
that the learner announced.
"""

from __future__ import annotations

import math

import numpy as np

from fulgurite.events import PolicyUpdate
from fulgurite.tokens import unpack_ids, unpack_logprobs
from services.applier.engine import Engine
from services.applier.errors import EngineRefused, ProbeFailed


async def difference(
    engine: Engine, update: PolicyUpdate | None, tolerance: float, model: str | None = None
) -> float | None:
    """Largest absolute difference on the update's probe; None without one. `model`: an adapter.
    Raises ProbeFailed, EngineUnreachable.

    The mean is what is judged by the tolerance: of 23 log-probabilities one alone, of an improbable
    token in bf16, may lie far from the learner's while the weights are the same; other weights move
    all of them.
    """
    if update is None or update.probe is None:
        return None
    try:
        token_ids, expected = (
            unpack_ids(update.probe.token_ids).tolist(),
            unpack_logprobs(update.probe.logprobs),
        )
    except ValueError as error:
        raise ProbeFailed(f"the update's probe cannot be read: {error}") from error
    if not len(expected):
        raise ProbeFailed("the update's probe has no log-probabilities")
    try:
        found = np.asarray(await engine.prompt_logprobs(token_ids, model), dtype=np.float32)
    except EngineRefused as error:
        raise ProbeFailed(f"the engine does not answer the probe: {error}") from error
    if found.shape != expected.shape:
        raise ProbeFailed(
            f"the probe has {expected.size} log-probabilities, the engine gave {found.size}"
        )
    differences = np.abs(found - expected)
    mean, largest = float(differences.mean()), float(differences.max())
    # `not <=`: NaN fails too.
    if not mean <= tolerance:
        raise ProbeFailed(
            f"log-probabilities of the probe differ by {mean:.3f} on average, {largest:.3f} at "
            f"most; {tolerance} on average is tolerated (FULGURITE_APPLIER_PROBE_TOLERANCE)",
            largest if math.isfinite(largest) else None,
        )
    return largest
