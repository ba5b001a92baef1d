"""List, signal and end the processes of a process group or of a session.

Uses the standard library alone, because scripts that run outside our environment load this file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

_POLL_S = 0.05


def signal_group(leader: int, number: int) -> bool:
    """Signal every process of a group. Return False if there is no such group."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # the group has processes of another user, or on macOS only dead ones
    return True


def session_members(leader: int) -> list[int]:
    """List the living processes of a session; without /proc, only its leader."""
    proc = Path("/proc")
    if not proc.is_dir():
        return [leader]
    found: list[int] = []
    for entry in proc.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError, PermissionError):
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state != "Z":
                    found.append(int(entry.name))
    return found


def signal_session(leader: int, number: int) -> None:
    """Signal the leader's process group, and the other processes of its session."""
    signal_group(leader, number)
    for member in session_members(leader):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(member, number)


def end_sessions(leaders: Iterable[int], grace_s: float) -> None:
    """Send SIGTERM to sessions, wait at most `grace_s` seconds, then send SIGKILL to what is left.

    A stopped process (SIGSTOP) is continued first, so that it can react.
    """
    sessions = list(leaders)
    for number in (signal.SIGCONT, signal.SIGTERM):
        for leader in sessions:
            signal_session(leader, number)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(map(session_members, sessions)):
        time.sleep(_POLL_S)
    for leader in sessions:
        signal_session(leader, signal.SIGKILL)
