"""The learner, standing still at a named point of its second batch (`before_tensors`: of its first
tensors): `python -m tests.integration.paused_learner POINT MARKER`.

It writes the file MARKER when it gets there, and waits to be killed; of several workers (`in_step`)
only one stands still, whose process id is in the file, and the others wait for it. The learner itself knows
nothing of it: the functions around the point are wrapped here.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from services.learner import main
from services.learner.checkpoint import CheckpointStore
from services.learner.engine.cpu_platform import select
from services.learner.policy_log import PolicyLog

POINTS = ("before_checkpoint", "before_publish", "after_publish", "before_tensors", "in_step")

_BATCH = 2


def arm(point: str, marker: Path) -> None:
    """Make this process stop at the point."""

    def stand_still() -> None:
        marker.touch()
        time.sleep(3600)

    def suspend_a_worker() -> None:
        victim = next(
            child
            for child in psutil.Process().children(recursive=True)
            if "ForestWorker" in " ".join(child.cmdline())
        )
        victim.suspend()
        marker.write_text(str(victim.pid))

    hold = suspend_a_worker if point == "in_step" else stand_still

    def wrapped(call: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
        calls = 0

        @functools.wraps(call)
        def counting(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if before and calls == _BATCH:
                hold()
            result = call(*arguments, **named)
            if not before and calls == _BATCH:
                hold()
            return result

        return counting

    if point == "before_checkpoint":
        CheckpointStore.write = wrapped(CheckpointStore.write, before=True)
    elif point == "before_tensors":

        def standing(*_: Any, **__: Any) -> None:
            stand_still()

        CheckpointStore.adopt = standing
    elif point == "in_step":
        # Whoever imports verl must have chosen the platform.
        select("cpu")
        from services.learner.backends.ray_group import RayWorkers

        RayWorkers.train_batch = wrapped(RayWorkers.train_batch, before=True)
    else:
        PolicyLog.publish = wrapped(PolicyLog.publish, before=point == "before_publish")


if __name__ == "__main__":
    arm(sys.argv[1], Path(sys.argv[2]))
    sys.exit(main.main())
