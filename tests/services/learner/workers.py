"""Looks inside a trainer that computes in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from services.learner.engine.worker import ForestWorker
    from services.learner.trainer import Trainer


def worker_of(trainer: Trainer) -> ForestWorker:
    """Its only worker."""
    return cast("ForestWorker", trainer.workers)
