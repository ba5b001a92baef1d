"""Defines a training row: tokens with everything that the loss of each token needs.

Importable without torch.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray


class TrainRow(msgspec.Struct, frozen=True, eq=False):
    """One row of T tokens. Every array is (T,), one value per token."""

    token_ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    """Whether the token carries loss. Never the first token, which nothing predicts."""
    behaviour_logprobs: NDArray[np.float32]
    """As the engine reported them, at the action's temperature; 0 where not trained."""
    advantages: NDArray[np.float32]
    weights: NDArray[np.float32]
    """How much a token counts (`services.learner.rows`)."""
    temperature: NDArray[np.float32]
    """The action's sampling temperature; anything above 0 where not trained."""


class Trained(NamedTuple):
    """What a batch came to."""

    metrics: dict[str, float]
    mini_batches: tuple[bool, ...]
    """Whether each mini-batch was trained; not those whose loss or gradient was never finite."""
