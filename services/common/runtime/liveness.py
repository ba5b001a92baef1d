"""Shows that a service without a port is alive: it touches a file that health checks look at.

FULGURITE_PULSE names the file; without it nothing is written. A full disk is ignored.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

EVERY_S = 1.0
"""The file is touched at most this often, however often `beat` is called."""

_last = float("-inf")


def beat() -> None:
    """Note that the service has done some work, or has found none."""
    global _last
    named = os.environ.get("FULGURITE_PULSE")
    if not named or time.monotonic() - _last < EVERY_S:
        return
    _last = time.monotonic()
    with contextlib.suppress(OSError):
        Path(named).touch()
