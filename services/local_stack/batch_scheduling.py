"""Run a program so that it does not preempt a model server on the same cores."""

from __future__ import annotations

import shutil
import subprocess


def batch_command() -> list[str]:
    """The words before a command that run it under SCHED_BATCH; none where `chrt` is missing or the
    system refuses. `chrt` replaces itself with the command, which keeps its process id.
    """
    chrt = shutil.which("chrt")
    if chrt is None:
        return []
    prefix = [chrt, "-b", "0"]
    allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    return prefix if allowed else []
