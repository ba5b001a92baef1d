"""Protects secrets in a process's environment from child processes and other processes.

It uses only the standard library.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

KEYS = frozenset({"FULGURITE_SIGNING_KEYS", "FULGURITE_ADMIN_KEY", "FULGURITE_API_KEYS"})
"""The gateway's secrets, with which keys are made, rollouts declared and models called."""

_PR_SET_DUMPABLE = 4


def without_keys(
    environment: Mapping[str, str], keep: frozenset[str] = frozenset()
) -> dict[str, str]:
    """Copy an environment without the gateway's keys, except those in `keep`."""
    return {name: value for name, value in environment.items() if name not in KEYS - keep}


def hide_from_other_processes() -> None:
    """Make `/proc/PID/environ` and the memory of this process unreadable for other processes of the
    same user; root still reads both.

    Linux only; elsewhere nothing happens. Core dumps and debuggers of the same user stop working,
    too. A child that executes another program is readable again.
    """
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None and prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_DUMPABLE, 0): {os.strerror(number)}")
