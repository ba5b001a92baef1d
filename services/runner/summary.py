"""The result of a run, and its exit code."""

from __future__ import annotations

from typing import Any

import msgspec

from fulgurite.learning.intervals import Estimate
from services.runner.scoreboard import CurvePoint

BROKEN = 1
"""Exit code of a run that could not continue."""
USELESS = 3
"""Exit code of a run that gave no training signal (`val`: no measurement)."""
INTERRUPTED = 130
"""Exit code of a command that was stopped, as shells give it."""


class Summary(msgspec.Struct, frozen=True):
    """The result of a run."""

    run_id: str
    mode: str
    groups: int
    counts: dict[str, int]
    actions: dict[str, int]
    """In mode `train`, the agents' actions by outcome: `trained`, `waiting` (for a reward or the
    learner), or the reason why they are not trained.
    """
    problem: str | None
    """Why the run was useless; None if it was not."""
    interrupted: bool
    """Whether it was stopped."""
    warnings: list[str]
    """What is wrong with its last groups, and what they wait for."""
    reward: Estimate | None
    components: dict[str, float]
    """Means of the named rewards, if there are several."""
    curve: list[CurvePoint]
    updates: int
    version: str
    seconds: float
    first_rollout_to_last_update_s: float | None
    updated_at_s: list[float]
    """Seconds from the first rollout to each update."""
    rollouts: list[dict[str, Any]]
    error: str | None = None
    """Why it could not continue; None if it could."""

    @property
    def exit_code(self) -> int:
        """Exit code of the command."""
        if self.interrupted:
            return INTERRUPTED
        if self.error is not None:
            return BROKEN
        return USELESS if self.problem else 0
