"""Importance weights between the engine and the trainer before a batch, by verl's helper."""

# verl ships no usable annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import torch
from verl.trainer.ppo.rollout_corr_helper import (
    compute_rollout_correction_weights,
    compute_rollout_rejection_mask,
)

from services.learner.config import AlgorithmConfig


def correction_weights(
    log_ratio: torch.Tensor, mask: torch.Tensor, config: AlgorithmConfig
) -> torch.Tensor:
    """Compute the weight (row, T) of every token from log trainer/engine (row, T).

    `token` and `sequence` truncate at `weight_high` (TIS; the sequence's weight is the product of
    its tokens'). `icepop` leaves out tokens beyond the bounds, `reject` rows whose ratio, the
    geometric mean of their tokens', is beyond them: their weight is 0.
    """
    low, high = config.weight_low, config.weight_high
    if config.weights == "reject":
        kept, _ = compute_rollout_rejection_mask(
            log_ratio=log_ratio,
            response_mask=mask,
            rollout_rs="seq_mean_k1",
            # verl's k1 is log engine/trainer, so its bounds are of the inverse ratio.
            rollout_rs_threshold=f"{1 / high}_{1 / low}",
        )
        return kept
    weights, _ = compute_rollout_correction_weights(
        log_ratio=log_ratio,
        response_mask=mask,
        rollout_is="sequence" if config.weights == "sequence" else "token",
        rollout_is_threshold=f"{low}_{high}" if config.weights == "icepop" else high,
    )
    return weights
