"""What a step minimises: a policy loss of verl's by name, every episode weighing the same, and the
watch over engine and trainer.

A token's weight, 1 / (trained tokens of its episode x episodes in the batch), enters where verl
lets importance weights enter (`rollout_is_weights`, which multiplies the loss of a token after
clipping), and verl sums (`token-sum`): the loss is the sum of weight times verl's loss of the
token, exactly. Entropy and KL terms carry the same weight. SAPO averages over sequences whatever it
is told; with one row per episode that is the same number, so no weight is added to it.

`bypass` takes the engine's log-probabilities as the old ones, `decoupled` the trainer's own before
the step, with truncated importance weights between the two. verl's bypass would silently replace
other losses by `vanilla`; what does not go together is refused at start.
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
"""Losses that bound the ratio to the old policy per token, so that the old policy may be the
engine's.
"""

SEQUENCE_LOSSES = frozenset({"gspo", "sapo"})
"""Losses over whole sequences: a row has to be an episode."""

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
"""As in verl's losses: beyond it, exp() says nothing more."""

_REMEDY = (
    "Calls answered by versions some steps old differ, too: where policy.applied shows that "
    "updates are served, lower FULGURITE_MAX_STALENESS (1 or 2), so that this batch's older calls "
    "are passed over as stale when the learner starts again, and lower FULGURITE_TRAINER_LR or "
    "raise FULGURITE_GROUPS_PER_STEP, so that steps take the policy less far. If fresh calls "
    "differ as much, the engine serves other weights than these, or runs without `--logprobs-mode "
    "processed_logprobs`"
)

logger = logs.get()


def check(settings: TrainerSettings) -> None:
    """Raise IncompatibleObjective unless loss, correction and rows go together."""
    name = settings.policy_loss
    if name not in POLICY_LOSS_REGISTRY:
        raise IncompatibleObjective(
            f"verl has no policy loss {name!r}; it has {', '.join(sorted(POLICY_LOSS_REGISTRY))}"
        )
    if name in REFUSED_LOSSES:
        raise IncompatibleObjective(
            f"the policy loss {name!r} cannot be used: {REFUSED_LOSSES[name]}"
        )
    if name in SEQUENCE_LOSSES and not settings.single_row_episodes:
        raise IncompatibleObjective(
            f"{name!r} is over whole sequences, and episodes may have several rows; set "
            "single_row_episodes, or use vanilla"
        )
    if settings.correction == "bypass" and name not in BYPASS_LOSSES:
        raise IncompatibleObjective(
            f"the correction `bypass` goes with {', '.join(sorted(BYPASS_LOSSES))}, not with "
            f"{name!r}; use `decoupled`"
        )


class Objective:
    """The loss of one step after another: `begin`, then verl calls it for every micro-batch. Raises
    PolicyDrift in the last one.

    verl's engine makes its optimizer step after the last micro-batch: what is raised here prevents
    it.
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
        """A step of so many rows and trained tokens begins."""
        self._rows = rows
        self._expected = trained_tokens
        self._seen = 0
        self._sums = dict.fromkeys(
            ("k3", "ratio", "ratio2", "policy", "entropy", "kl", "clipped"), 0.0
        )

    def __call__(
        self, model_output: Any, data: Any, dp_group: Any = None
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """verl's contract: nested log-probabilities and the micro-batch in, loss and
        metrics out.
        """
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
        loss, told = self._policy_loss(
            old_log_prob=old,
            log_prob=logprobs,
            advantages=dense(data["advantages"]),
            response_mask=mask,
            loss_agg_mode=self._config.loss_agg_mode,
            config=self._config,
            rollout_is_weights=correction if sequence_mean else correction * weights,
        )
        self._sums["policy"] += loss.item()
        self._sums["clipped"] += float(told.get("actor/pg_clipfrac", 0.0)) * int(mask.sum())
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
            self._judge()
        return loss, {}

    @property
    def drift(self) -> tuple[float, float]:
        """Over the step's trained tokens so far: mean k3 of KL(engine ‖ trainer), and effective
        sample size as a share of them.
        """
        if not self._seen:
            return 0.0, 1.0
        return self._sums["k3"] / self._seen, self._sums["ratio"] ** 2 / (
            self._seen * self._sums["ratio2"]
        )

    def metrics(self) -> dict[str, float]:
        """Of the step that ended."""
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
        """Raises StepNotFinite unless the loss of the step is a number. Not to be called amid a
        step: gradients would be left behind.
        """
        terms = {name: self._sums[name] for name in ("policy", "entropy", "kl")}
        if not all(map(math.isfinite, terms.values())):
            raise StepNotFinite(f"the loss is not finite ({terms}); nothing was changed")

    def _watch(self, logprobs: torch.Tensor, behaviour: torch.Tensor, mask: torch.Tensor) -> None:
        difference = (
            (logprobs - behaviour)[mask].double().clamp(-_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
        )
        ratio = difference.exp()
        self._seen += int(mask.sum())
        self._sums["k3"] += float((ratio - difference - 1).sum())
        self._sums["ratio"] += float(ratio.sum())
        self._sums["ratio2"] += float(ratio.square().sum())

    def _judge(self) -> None:
        settings, (k3, ess) = self._settings, self.drift
        # NaN compares false with every bound, and is the worst drift of all.
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
            logger.warning("engine and trainer drift apart", k3=k3, ess=ess)


def _dense(nested: torch.Tensor, *, longest: int) -> torch.Tensor:
    """(row, T) nested → (row, longest), padded with 0, as verl's losses take it."""
    rows = nested.float() if nested.dtype is torch.bool else nested
    # The size is said, since nested tensors that took part in autograd no longer know it.
    return torch.nested.to_padded_tensor(rows, 0.0, output_size=(rows.shape[0], longest))
