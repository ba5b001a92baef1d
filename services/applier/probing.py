"""Probes an engine: compares its log-probabilities of a prompt with the learner's."""

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
    """Return the largest absolute difference on the update's probe, in nats; None without a probe.

    `model`: an adapter. Raises ProbeFailed, EngineUnreachable. The tolerance applies to the mean
    difference: with the same weights, one log-probability of an improbable token may differ much in
    bf16, while other weights change all of them.
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
            f"log-probabilities of the probe differ by {mean:.3f} on average and {largest:.3f} at "
            f"most; the mean may be {tolerance} (FULGURITE_APPLIER_PROBE_TOLERANCE)",
            largest if math.isfinite(largest) else None,
        )
    return largest
