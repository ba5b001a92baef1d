"""The sign of life of a service without a port: a file that it touches while it does its work, for
a container's health check to look at.

FULGURITE_PULSE names it; without it nothing is written. A disk that is full is no reason to stop
working.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

EVERY_S = 1.0
"""Services beat as often as they like; a file is touched no more often than this."""

_last = float("-inf")


def beat() -> None:
    """The service has just done its work, or looked and found none."""
    global _last
    named = os.environ.get("FULGURITE_PULSE")
    if not named or time.monotonic() - _last < EVERY_S:
        return
    _last = time.monotonic()
    with contextlib.suppress(OSError):
        Path(named).touch()
