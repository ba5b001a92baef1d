"""What a tuning shall do."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from fulgurite.prompts.overlap import OverlapGuard
from fulgurite.prompts.tuning import Budget
from services.tuner.rollouts import TuningTask


class Method(StrEnum):
    """How candidates are made."""

    demonstrations = "demonstrations"
    """Conversations that went well, shown to the model; sets of them are searched."""
    gepa = "gepa"
    """A model reads what went wrong, and writes another system prompt."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a tuning."""

    method: Method
    train: tuple[TuningTask, ...]
    validation: tuple[TuningTask, ...]
    guard: OverlapGuard
    """Of the tasks whose text no candidate may have."""
    n: int
    """Rollouts for each task and version."""
    candidates: int
    """Largest number of candidates."""
    budget: Budget
    seed: int
    slots: int
    """Demonstrations: largest number of examples in a candidate."""
    pool: int
    """Demonstrations: examples to choose from."""
    least_reward: float
    """Demonstrations: what an example must have earned."""
    start: str | None
    """GEPA: the first system prompt; None: what is in force, or what the agent sends."""
    minibatch: int
    """GEPA: training tasks that are reflected on at once."""
    promote: bool
    """Whether a better candidate is put in force."""

    @property
    def comparing(self) -> int:
        """Rollouts of the comparison at the end."""
        return 2 * self.n * len(self.validation)
