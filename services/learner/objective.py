"""Defines the loss of an optimizer step: a policy loss of verl, with the algorithm's weights.

A token's weight (`services.learner.rows`) enters where verl lets importance weights enter
(`rollout_is_weights`, which multiplies the loss of a token after clipping), and verl sums
(`token-sum`): the loss is the sum of weight times verl's loss of the token, exactly. Entropy and KL
terms carry the same weight. SAPO always averages over sequences; with one row per episode the
result is the same, so it gets no weights.

The loss keeps nothing between calls: of each micro-batch it returns sums, which the engine adds up
over micro-batches and processes, and by which the step is judged before it is made.

`bypass` takes the engine's log-probabilities as the old ones, `decoupled` the trainer's own before
the batch, with importance weights between the two (`services.learner.correction`).
"""

# verl and tensordict ship no usable annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn, kl_penalty
from verl.utils import tensordict_utils as tu
from verl.workers.config import ActorConfig, PolicyLossConfig

from services.learner.config import RunConfig
from services.learner.drift import Drift, drift_sums
from services.learner.entropy import require_entropy
from services.learner.errors import StepNotFinite

_SEQUENCE_MEANS = frozenset({"sapo"})
"""Losses that average over sequences whatever they are told."""


class Objective:
    """The loss of a step. verl calls it for every micro-batch, and the engine calls `judge` with
    the sums of all of them, on every process alike, before the optimizer's step.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._algorithm = config.algorithm.algorithm
        self._policy_loss = cast(
            "Callable[..., tuple[torch.Tensor, dict[str, Any]]]",
            get_policy_loss_fn(self._algorithm.loss),
        )
        self._verl_config = _verl_config(config)

    def __call__(
        self, model_output: Any, data: Any, dp_group: Any = None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Compute the loss of a micro-batch from its nested log-probabilities, and its sums.

        FSDP takes the mean of the gradients of `dp_size` processes, so the loss is multiplied by
        that; the sums are not.
        """
        longest = int(data["input_ids"].offsets().diff().max())
        dense = functools.partial(dense_rows, longest=longest)
        mask = dense(data["loss_mask"]).bool()
        logprobs = dense(model_output["log_probs"])
        weights = dense(data["weights"])
        behaviour = dense(data["behaviour_logprobs"])
        sums = drift_sums(logprobs.detach(), behaviour, mask, dense(data["ages"]))
        correction = dense(data["rollout_is_weights"])
        # Only sequence means use the number of rows; a token sum needs none of these.
        self._verl_config.global_batch_info.update(
            dp_size=1,
            batch_num_tokens=None,
            global_batch_size=tu.get_non_tensor_data(data, "batch_rows", 0),
            loss_scale_factor=None,
        )
        loss, metrics = self._policy_loss(
            old_log_prob=dense(data["old_log_probs"]),
            log_prob=logprobs,
            advantages=dense(data["advantages"]),
            response_mask=mask,
            loss_agg_mode=self._verl_config.loss_agg_mode,
            config=self._verl_config,
            rollout_is_weights=correction
            if self._algorithm.loss in _SEQUENCE_MEANS
            else correction * weights,
        )
        entropy = agg_loss(dense(model_output["entropy"]) * weights, mask, "token-sum")
        sums |= {
            "policy": loss.item(),
            "clipped": float(metrics.get("actor/pg_clipfrac", 0.0)) * int(mask.sum()),
            "weight": float(weights[mask].sum()),
            "entropy": entropy.item(),
        }
        if self._config.algorithm.entropy_bonus:
            loss = loss - self._config.algorithm.entropy_bonus * entropy
        if self._config.algorithm.kl:
            penalty = kl_penalty(
                cast("Any", logprobs),
                cast("Any", dense(data["ref_log_probs"])),
                self._config.algorithm.kl_estimator,
            )
            kl = agg_loss(penalty * weights, mask, "token-sum")
            sums["kl"] = kl.item()
            loss = loss + self._config.algorithm.kl * kl
        return loss * tu.get_non_tensor_data(data, "dp_size", 1), sums

    def judge(self, sums: Mapping[str, float]) -> None:
        """Raise StepRefused or StepNotFinite unless the optimizer may make the step.

        `sums`: of all micro-batches of all processes.
        """
        if self._config.algorithm.correction == "bypass":
            Drift(sums).check(self._config.drift)
        terms = {name: sums[name] for name in ("policy", "entropy", "kl") if name in sums}
        if not all(map(math.isfinite, terms.values())):
            raise StepNotFinite(f"the loss is not finite ({terms}); no weight was changed")
        if sums["weight"]:
            require_entropy(sums["entropy"] / sums["weight"], self._config.algorithm)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics of a step. `entropy` and `kl` are weighted means over its tokens, in nats."""
        metrics = {
            "policy_loss": sums["policy"],
            "clip_fraction": sums["clipped"] / max(Drift(sums).tokens, 1),
            "entropy": sums["entropy"] / sums["weight"],
        }
        if self._config.algorithm.kl:
            metrics["kl"] = sums["kl"] / sums["weight"]
        return metrics


def _verl_config(config: RunConfig) -> ActorConfig:
    """The settings of verl's losses; what a loss does not use keeps verl's default."""
    algorithm, clip = config.algorithm.algorithm, config.algorithm.clip
    bounds: dict[str, float] = {}
    if algorithm.clip is not None:
        low, high = algorithm.clip
        bounds["clip_ratio_low"] = clip.low if clip.low is not None else low
        bounds["clip_ratio_high"] = clip.high if clip.high is not None else high
    ratio_cap = config.algorithm.ratio_cap or algorithm.ratio_cap
    if ratio_cap is not None:
        bounds["clip_ratio_c"] = ratio_cap
    return ActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        use_dynamic_bsz=True,
        policy_loss=PolicyLossConfig(loss_mode=algorithm.loss),
        loss_agg_mode="token-sum",
        entropy_coeff=config.algorithm.entropy_bonus,
        **bounds,
    )


def dense_rows(nested: torch.Tensor, *, longest: int) -> torch.Tensor:
    """Pad nested (row, T) with 0 to (row, longest), as verl's losses take it."""
    rows = nested.float() if nested.dtype is torch.bool else nested
    # The size is given, because nested tensors from autograd no longer know it.
    return torch.nested.to_padded_tensor(rows, 0.0, output_size=(rows.shape[0], longest))
