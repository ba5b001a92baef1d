"""Computes in the learner's own process, on one device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from services.learner.config import RunConfig
from services.learner.errors import ConfigInvalid

if TYPE_CHECKING:
    from services.learner.engine.worker import ForestWorker

_ALONE = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
"""What a worker is told by whoever starts it."""


def start_in_process(config: RunConfig, device: str) -> ForestWorker:
    """Make the only worker of a run. Raises ConfigInvalid where others were started beside it."""
    _refuse_several_processes()
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    from services.learner.engine.worker import ForestWorker

    worker = ForestWorker(config, device)
    worker.reset()
    return worker


def _refuse_several_processes() -> None:
    """Raise ConfigInvalid where torchrun or a scheduler has started several trainers."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise ConfigInvalid(
            f"WORLD_SIZE={size}, but each learner starts its workers itself: several learners "
            "would train one policy against each other. Start one without torchrun, unset "
            'WORLD_SIZE, and set engine.placement = "ray" and engine.workers_per_node'
        )
