"""How far the engine's log-probabilities and the trainer's are apart over a batch."""

# torch is annotated in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fulgurite.ledger.remedies import DRIFT_REMEDY
from services.common.runtime import logs
from services.learner.config import DriftConfig
from services.learner.errors import PolicyDrift, StepNotFinite

_LOG_RATIO_BOUND = 20.0
"""As in verl's losses: beyond it, exp() says nothing more."""

_AGES = (0, 1, 2, 4, 8, 16)
"""The least staleness of each class of tokens that has figures of its own."""
AGE_CLASSES = ("0", "1", "2-3", "4-7", "8-15", "16+")
"""Their names."""
_ALL = "all"

logger = logs.get()


def drift_sums(
    trainer: torch.Tensor, engine: torch.Tensor, mask: torch.Tensor, ages: torch.Tensor
) -> dict[str, float]:
    """Sums over tokens of the ratio trainer/engine, by name, of all tokens and of each age.

    Log-probabilities and ages are of one shape, and count where the mask is set. The sums of parts
    of a batch, whoever computed them, add up to those of the batch.
    """
    difference = (trainer - engine)[mask].double().clamp(-_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
    bounds = torch.tensor(_AGES[1:], dtype=ages.dtype, device=ages.device)
    kinds = torch.bucketize(ages[mask], bounds, right=True)
    sums = _ratio_sums(_ALL, difference)
    for kind, name in enumerate(AGE_CLASSES):
        sums |= _ratio_sums(name, difference[kinds == kind])
    return sums


def _ratio_sums(kind: str, difference: torch.Tensor) -> dict[str, float]:
    ratio = difference.exp()
    return {
        f"drift/{kind}/tokens": float(difference.numel()),
        f"drift/{kind}/k3": float((ratio - difference - 1).sum()),
        f"drift/{kind}/ratio": float(ratio.sum()),
        f"drift/{kind}/ratio2": float(ratio.square().sum()),
    }


class Drift:
    """What the sums of a batch say. `sums` may have others beside those of `drift_sums`."""

    def __init__(self, sums: Mapping[str, float]) -> None:
        self._sums = sums

    @property
    def tokens(self) -> float:
        """How many tokens were compared."""
        return self._of(_ALL, "tokens")

    @property
    def k3(self) -> float:
        """Mean k3 estimate of KL(engine ‖ trainer), Schulman's (ratio - 1) - log ratio."""
        return self._k3(_ALL)

    @property
    def ess(self) -> float:
        """Effective sample size of the ratios, as a share of the tokens."""
        return self._ess(_ALL)

    def _of(self, kind: str, what: str) -> float:
        return self._sums.get(f"drift/{kind}/{what}", 0.0)

    def _k3(self, kind: str) -> float:
        tokens = self._of(kind, "tokens")
        return self._of(kind, "k3") / tokens if tokens else 0.0

    def _ess(self, kind: str) -> float:
        tokens = self._of(kind, "tokens")
        return self._of(kind, "ratio") ** 2 / (tokens * self._of(kind, "ratio2")) if tokens else 1.0

    def metrics(self) -> dict[str, float]:
        """`k3` and `ess`, of all tokens and by age, such as `k3/age/2-3`."""
        found = {"k3": self.k3, "ess": self.ess}
        for name in AGE_CLASSES:
            if self._of(name, "tokens"):
                found |= {f"k3/age/{name}": self._k3(name), f"ess/age/{name}": self._ess(name)}
        return found

    def check(self, bounds: DriftConfig) -> None:
        """Warn beyond the alarm's bounds.

        Raises PolicyDrift beyond those of the stop, and StepNotFinite if a log-probability is NaN.
        """
        k3, ess = self.k3, self.ess
        if not (math.isfinite(k3) and math.isfinite(ess)):
            raise StepNotFinite(
                f"a log-probability of the batch is not finite (k3 {k3:g}, effective sample size "
                f"{ess:g}); no weight was changed"
            )
        if k3 > bounds.stop.k3 or ess < bounds.stop.ess:
            raise PolicyDrift(
                "the engine's log-probabilities of this batch and the trainer's disagree: k3 "
                f"{k3:.4f} (drift.stop.k3 = {bounds.stop.k3:g}), effective sample size {ess:.3f} "
                f"(drift.stop.ess = {bounds.stop.ess:g}); nothing was changed: {DRIFT_REMEDY}",
                k3=k3,
                ess=ess,
            )
        if k3 > bounds.alarm.k3 or ess < bounds.alarm.ess:
            logger.warning(
                "the log-probabilities of engine and trainer differ more than usual", k3=k3, ess=ess
            )
