"""Watches the policy's entropy: a policy that says the same every time learns nothing more."""

from __future__ import annotations

from services.common.runtime import logs
from services.learner.config import AlgorithmConfig
from services.learner.errors import EntropyCollapse

_REMEDY = (
    "lower optimizer.lr, raise algorithm.entropy_bonus or algorithm.kl, or go back to an earlier "
    "version with `fulgurite policy rollback`. Look at the rollouts: a reward that one short "
    "answer maximises has this effect, too"
)

logger = logs.get()


def require_entropy(entropy: float, config: AlgorithmConfig) -> None:
    """Raise EntropyCollapse below the stop's bound. `entropy`: in nats per trained token."""
    if entropy < config.entropy_stop_below:
        raise EntropyCollapse(
            f"the policy's entropy on this batch is {entropy:.4f} nats per token "
            f"(algorithm.entropy_stop_below = {config.entropy_stop_below:g}); nothing was changed. "
            f"It says nearly the same every time: {_REMEDY}"
        )


def warn_of_low_entropy(entropy: float, config: AlgorithmConfig) -> None:
    """Warn below the alarm's bound."""
    if entropy < config.entropy_alarm_below:
        logger.warning(
            "the policy's entropy is low: it says nearly the same every time, and groups will have "
            "no signal",
            entropy=entropy,
            entropy_alarm_below=config.entropy_alarm_below,
            remedy=_REMEDY,
        )
