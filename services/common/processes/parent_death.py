"""End a process when its parent ends, on Linux.

Uses the standard library alone, because scripts that run outside our environment load this file.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def _load_prctl() -> Any:
    if sys.platform != "linux":
        return None
    import ctypes  # only here: an optional part of Python

    return ctypes.CDLL(None, use_errno=True).prctl


_prctl = _load_prctl()
"""Loaded at import: a process that was forked may have no memory or files left to load it."""


def end_with_parent(parent: int | None = None) -> None:
    """Let the system end this process with SIGKILL when the thread that started it ends.

    `parent` is the id of the parent process, where the caller knows it: if that has ended already,
    this process ends now. A fork of this process is not ended. Does nothing except on Linux.
    """
    if _prctl is None:
        return
    expected = os.getppid() if parent is None else parent
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != expected:
        os.kill(os.getpid(), signal.SIGKILL)
