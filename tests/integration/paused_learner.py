"""The learner, standing still at a named point of its second batch: `python -m
tests.integration.paused_learner POINT MARKER`.

It writes the file MARKER when it gets there, and waits to be killed. The learner itself knows
nothing of it: the functions around the point are wrapped here.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.learner import main
from services.learner.checkpoint import CheckpointStore
from services.learner.policy_log import PolicyLog

POINTS = ("before_checkpoint", "before_publish", "after_publish")

_BATCH = 2


def arm(point: str, marker: Path) -> None:
    """Make this process stop at the point."""

    def stand_still() -> None:
        marker.touch()
        time.sleep(3600)

    def wrapped(call: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
        calls = 0

        @functools.wraps(call)
        def counting(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if before and calls == _BATCH:
                stand_still()
            result = call(*arguments, **named)
            if not before and calls == _BATCH:
                stand_still()
            return result

        return counting

    if point == "before_checkpoint":
        CheckpointStore.write = wrapped(CheckpointStore.write, before=True)
    else:
        PolicyLog.publish = wrapped(PolicyLog.publish, before=point == "before_publish")


if __name__ == "__main__":
    arm(sys.argv[1], Path(sys.argv[2]))
    sys.exit(main.main())
