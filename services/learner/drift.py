"""How far the engine's log-probabilities and the trainer's are apart over a batch."""

# torch is annotated in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import cast

import torch

from services.common.runtime import logs
from services.learner.config import DriftConfig
from services.learner.errors import PolicyDrift

_LOG_RATIO_BOUND = 20.0
"""As in verl's losses: beyond it, exp() says nothing more."""

_AGES = (0, 1, 2, 4, 8, 16)
"""The least staleness of each class of tokens that has figures of its own."""
AGE_CLASSES = ("0", "1", "2-3", "4-7", "8-15", "16+")
"""Their names."""

_REMEDY = (
    "Two causes are likely. (1) The batch has old calls and each step changes the policy much: "
    "lower batch.max_staleness to 1 or 2, so that old calls are skipped as stale after the "
    "restart, and lower optimizer.lr or raise batch.groups. (2) The engine serves other weights, "
    "or runs without `--logprobs-mode processed_logprobs`: check what it serves with `fulgurite "
    "status`, and its options"
)

logger = logs.get()


class Ratios:
    """Sums over tokens of the ratio trainer/engine."""

    def __init__(self) -> None:
        self.tokens = 0
        self._k3 = 0.0
        self._ratio = 0.0
        self._ratio2 = 0.0

    def add(self, difference: torch.Tensor) -> None:
        """Add log-probabilities, trainer's less engine's, of any shape."""
        ratio = difference.exp()
        self.tokens += difference.numel()
        self._k3 += float((ratio - difference - 1).sum())
        self._ratio += float(ratio.sum())
        self._ratio2 += float(ratio.square().sum())

    @property
    def k3(self) -> float:
        """Mean k3 estimate of KL(engine ‖ trainer), Schulman's (ratio - 1) - log ratio."""
        return self._k3 / self.tokens if self.tokens else 0.0

    @property
    def ess(self) -> float:
        """Effective sample size of the ratios, as a share of the tokens."""
        return self._ratio**2 / (self.tokens * self._ratio2) if self.tokens else 1.0


class Drift:
    """Sums over the trained tokens of a batch, and over those of each age."""

    def __init__(self) -> None:
        self._all = Ratios()
        self._by_age = [Ratios() for _ in _AGES]

    def add(
        self, trainer: torch.Tensor, engine: torch.Tensor, mask: torch.Tensor, ages: torch.Tensor
    ) -> None:
        """Add log-probabilities of tokens, all of one shape, where the mask is set."""
        difference = (trainer - engine)[mask].double().clamp(-_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
        self._all.add(difference)
        bounds = torch.tensor(_AGES[1:], dtype=ages.dtype, device=ages.device)
        kinds = torch.bucketize(ages[mask], bounds, right=True)
        for kind in set(cast("list[int]", kinds.tolist())):
            self._by_age[kind].add(difference[kinds == kind])

    @property
    def tokens(self) -> int:
        """How many were added."""
        return self._all.tokens

    @property
    def k3(self) -> float:
        """See Ratios."""
        return self._all.k3

    @property
    def ess(self) -> float:
        """See Ratios."""
        return self._all.ess

    def metrics(self) -> dict[str, float]:
        """`k3` and `ess`, of all tokens and by age, such as `k3/age/2-3`."""
        found = {"k3": self.k3, "ess": self.ess}
        for name, ratios in zip(AGE_CLASSES, self._by_age, strict=True):
            if ratios.tokens:
                found |= {f"k3/age/{name}": ratios.k3, f"ess/age/{name}": ratios.ess}
        return found

    def check(self, bounds: DriftConfig) -> None:
        """Warn beyond the alarm's bounds. Raises PolicyDrift beyond those of the stop."""
        k3, ess = self.k3, self.ess
        # Written so that NaN raises too.
        if not (k3 <= bounds.stop.k3 and ess >= bounds.stop.ess):
            raise PolicyDrift(
                "the engine's log-probabilities of this batch and the trainer's disagree: k3 "
                f"{k3:.4f} (drift.stop.k3 = {bounds.stop.k3:g}), effective sample size {ess:.3f} "
                f"(drift.stop.ess = {bounds.stop.ess:g}); nothing was changed. {_REMEDY}",
                k3=k3,
                ess=ess,
            )
        if k3 > bounds.alarm.k3 or ess < bounds.alarm.ess:
            logger.warning(
                "the log-probabilities of engine and trainer differ more than usual", k3=k3, ess=ess
            )
