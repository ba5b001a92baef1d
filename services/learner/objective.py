"""Defines the loss of a step: a policy loss of verl, with the same weight for every episode.

It also checks that engine and trainer agree (`PolicyDrift`).

A token's weight, 1 / (trained tokens of its episode x episodes in the batch), enters where verl
lets importance weights enter (`rollout_is_weights`, which multiplies the loss of a token after
clipping), and verl sums (`token-sum`): the loss is the sum of weight times verl's loss of the
token, exactly. Entropy and KL terms carry the same weight. SAPO always averages over sequences;
with one row per episode the result is the same, so it gets no weights.

`bypass` takes the engine's log-probabilities as the old ones, `decoupled` the trainer's own before
the step, with truncated importance weights between the two. verl's bypass would silently replace
other losses by `vanilla`, so losses that do not fit are refused at the start.
"""

# verl and tensordict ship no usable annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from verl.trainer.ppo.core_algos import (
    POLICY_LOSS_REGISTRY,
    agg_loss,
    get_policy_loss_fn,
    kl_penalty,
)
from verl.workers.config import ActorConfig, PolicyLossConfig

from services.common.runtime import logs
from services.learner.errors import IncompatibleObjective, PolicyDrift, StepNotFinite
from services.learner.trainer_settings import TrainerSettings

BYPASS_LOSSES = frozenset({"vanilla", "dppo_tv", "dppo_kl"})
"""Losses that bound the ratio to the old policy per token. The old policy may be the engine's."""

SEQUENCE_LOSSES = frozenset({"gspo", "sapo"})
"""Losses over whole sequences: every row must be a whole episode."""

REFUSED_LOSSES = {
    "geo_mean": "it averages over the rows of a micro-batch, so that its value depends on how "
    "a batch is cut",
    "clip_cov": "it picks tokens by their covariance within a micro-batch, so that its value "
    "depends on how a batch is cut",
    "kl_cov": "it picks tokens by their covariance within a micro-batch, so that its value "
    "depends on how a batch is cut",
    "bypass_mode": "it replaces the loss; set the correction to `bypass` instead",
}

_LOG_RATIO_BOUND = 20.0
"""Clamp of the log ratio, as in verl's losses."""

_REMEDY = (
    "Two causes are likely. (1) The batch has old calls and each step changes the policy much: "
    "lower FULGURITE_MAX_STALENESS to 1 or 2, so that old calls are skipped as stale after the "
    "restart, and lower FULGURITE_TRAINER_LR or raise FULGURITE_GROUPS_PER_STEP. (2) The engine "
    "serves other weights, or runs without `--logprobs-mode processed_logprobs`: check what it "
    "serves with `fulgurite status`, and its options"
)

logger = logs.get()


def check(settings: TrainerSettings) -> None:
    """Raise IncompatibleObjective unless loss, correction and rows fit together."""
    name = settings.policy_loss
    if name not in POLICY_LOSS_REGISTRY:
        raise IncompatibleObjective(
            f"FULGURITE_TRAINER_POLICY_LOSS={name}: verl has no policy loss of this name. Use one "
            f"of {', '.join(sorted(POLICY_LOSS_REGISTRY))}."
        )
    if name in REFUSED_LOSSES:
        raise IncompatibleObjective(
            f"FULGURITE_TRAINER_POLICY_LOSS={name}: this loss cannot be used, because "
            f"{REFUSED_LOSSES[name]}"
        )
    if name in SEQUENCE_LOSSES and not settings.single_row_episodes:
        raise IncompatibleObjective(
            f"FULGURITE_TRAINER_POLICY_LOSS={name}: this loss needs whole sequences, but episodes "
            "may have several rows. Use `vanilla`, or set FULGURITE_TRAINER_SINGLE_ROW_EPISODES "
            "if each has one."
        )
    if settings.correction == "bypass" and name not in BYPASS_LOSSES:
        raise IncompatibleObjective(
            "FULGURITE_TRAINER_CORRECTION=bypass works with the losses "
            f"{', '.join(sorted(BYPASS_LOSSES))}, not with {name!r}: set it to `decoupled`"
        )


class Objective:
    """The loss of a step: call `begin`, then verl calls the object for every micro-batch.

    Raises PolicyDrift in the last micro-batch. verl's engine makes its optimizer step after that,
    so the exception prevents the step.
    """

    def __init__(self, settings: TrainerSettings) -> None:
        check(settings)
        self._settings = settings
        self._policy_loss = cast(
            "Callable[..., tuple[torch.Tensor, dict[str, Any]]]",
            get_policy_loss_fn(settings.policy_loss),
        )
        self._config = ActorConfig(
            strategy="fsdp2",
            rollout_n=1,
            use_dynamic_bsz=True,
            clip_ratio_low=settings.clip_low,
            clip_ratio_high=settings.clip_high,
            policy_loss=PolicyLossConfig(loss_mode=settings.policy_loss),
            loss_agg_mode="token-sum",
            entropy_coeff=settings.entropy_coef,
        )
        self.begin(rows=0, trained_tokens=0)

    def begin(self, *, rows: int, trained_tokens: int) -> None:
        """Begin a step of so many rows and trained tokens."""
        self._rows = rows
        self._expected = trained_tokens
        self._seen = 0
        self._sums = dict.fromkeys(
            ("k3", "ratio", "ratio2", "policy", "entropy", "kl", "clipped"), 0.0
        )

    def __call__(
        self, model_output: Any, data: Any, dp_group: Any = None
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Compute loss and metrics from nested log-probabilities and a micro-batch, for verl."""
        longest = int(data["input_ids"].offsets().diff().max())
        dense = functools.partial(_dense, longest=longest)
        mask = dense(data["loss_mask"]).bool()
        logprobs = dense(model_output["log_probs"])
        behaviour = dense(data["behaviour_logprobs"])
        weights = dense(data["weights"])
        self._watch(logprobs.detach(), behaviour, mask)
        old = dense(data["old_log_probs"])
        correction = dense(data["rollout_is_weights"])
        sequence_mean = self._settings.policy_loss == "sapo"
        # Only sequence means use the number of episodes; a token sum needs none of these.
        self._config.global_batch_info.update(
            dp_size=1, batch_num_tokens=None, global_batch_size=self._rows, loss_scale_factor=None
        )
        loss, metrics = self._policy_loss(
            old_log_prob=old,
            log_prob=logprobs,
            advantages=dense(data["advantages"]),
            response_mask=mask,
            loss_agg_mode=self._config.loss_agg_mode,
            config=self._config,
            rollout_is_weights=correction if sequence_mean else correction * weights,
        )
        self._sums["policy"] += loss.item()
        self._sums["clipped"] += float(metrics.get("actor/pg_clipfrac", 0.0)) * int(mask.sum())
        if self._settings.entropy_coef:
            entropy = agg_loss(dense(model_output["entropy"]) * weights, mask, "token-sum")
            self._sums["entropy"] += entropy.item()
            loss = loss - self._settings.entropy_coef * entropy
        if self._settings.kl_coef:
            penalty = kl_penalty(
                cast("Any", logprobs),
                cast("Any", dense(data["ref_log_probs"])),
                self._settings.kl_estimator,
            )
            kl = agg_loss(penalty * weights, mask, "token-sum")
            self._sums["kl"] += kl.item()
            loss = loss + self._settings.kl_coef * kl
        if self._seen == self._expected:
            self._check_drift()
        return loss, {}

    @property
    def drift(self) -> tuple[float, float]:
        """Mean k3 of KL(engine ‖ trainer) over the step's trained tokens so far, and the effective
        sample size as a share of them.
        """
        if not self._seen:
            return 0.0, 1.0
        return self._sums["k3"] / self._seen, self._sums["ratio"] ** 2 / (
            self._seen * self._sums["ratio2"]
        )

    def metrics(self) -> dict[str, float]:
        """Metrics of the step that ended."""
        k3, ess = self.drift
        metrics = {
            "policy_loss": self._sums["policy"],
            "k3": k3,
            "ess": ess,
            "clip_fraction": self._sums["clipped"] / max(self._seen, 1),
        }
        if self._settings.entropy_coef:
            metrics["entropy"] = self._sums["entropy"]
        if self._settings.kl_coef:
            metrics["kl"] = self._sums["kl"]
        return metrics

    def require_finite(self) -> None:
        """Raise StepNotFinite unless the loss of the step is finite.

        Do not call it before the last micro-batch: gradients would stay.
        """
        terms = {name: self._sums[name] for name in ("policy", "entropy", "kl")}
        if not all(map(math.isfinite, terms.values())):
            raise StepNotFinite(f"the loss is not finite ({terms}); no weight was changed")

    def _watch(self, logprobs: torch.Tensor, behaviour: torch.Tensor, mask: torch.Tensor) -> None:
        difference = (
            (logprobs - behaviour)[mask].double().clamp(-_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
        )
        ratio = difference.exp()
        self._seen += int(mask.sum())
        self._sums["k3"] += float((ratio - difference - 1).sum())
        self._sums["ratio"] += float(ratio.sum())
        self._sums["ratio2"] += float(ratio.square().sum())

    def _check_drift(self) -> None:
        settings, (k3, ess) = self._settings, self.drift
        # Written so that NaN raises too.
        if not (k3 <= settings.drift_stop_k3 and ess >= settings.drift_stop_ess):
            raise PolicyDrift(
                "the engine's log-probabilities of this batch and the trainer's disagree: k3 "
                f"{k3:.4f} (FULGURITE_TRAINER_DRIFT_STOP_K3={settings.drift_stop_k3}), effective "
                f"sample size {ess:.3f} "
                f"(FULGURITE_TRAINER_DRIFT_STOP_ESS={settings.drift_stop_ess}); nothing was "
                f"changed. {_REMEDY}",
                k3=k3,
                ess=ess,
            )
        if k3 > settings.drift_alarm_k3 or ess < settings.drift_alarm_ess:
            logger.warning(
                "the log-probabilities of engine and trainer differ more than usual", k3=k3, ess=ess
            )


def _dense(nested: torch.Tensor, *, longest: int) -> torch.Tensor:
    """(row, T) nested → (row, longest), padded with 0, as verl's losses take it."""
    rows = nested.float() if nested.dtype is torch.bool else nested
    # The size is given, because nested tensors from autograd no longer know it.
    return torch.nested.to_padded_tensor(rows, 0.0, output_size=(rows.shape[0], longest))
