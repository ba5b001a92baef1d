"""Programs for the tests of child processes, and a way to wait for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
IGNORES_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
print("up", child.pid, flush=True)
time.sleep(600)
"""
"""Its child is in another group of the same session."""


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it holds within half a minute: the machine may be busy."""
    deadline = time.monotonic() + 30
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
