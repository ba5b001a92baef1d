"""End the sessions of child processes when their parent dies, even by SIGKILL.

The watchdog is a small process beside the parent. It learns the sessions over a pipe. When the pipe
closes or its own parent changes, the parent is gone: the watchdog ends every session still listed.
It runs with the standard library alone, so that it starts in milliseconds.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

from services.common.processes.groups import end_sessions

GRACE_S = 5.0
"""Seconds from SIGTERM to SIGKILL, for sessions whose parent died."""

_PARENT_POLL_S = 1.0
"""A forked child of the parent may hold the pipe open. Then only the watchdog's own parent id
shows that the parent died.
"""
_starting = threading.Lock()
_ROOT = str(Path(__file__).resolve().parents[3])


def command(parent: int) -> list[str]:
    """The command line of a watchdog for the process `parent`."""
    code = f"import sys; sys.path.append({_ROOT!r}); from {__name__} import serve; serve({parent})"
    return [sys.executable, "-I", "-S", "-c", code]


class Watchdog:
    """The parent's end of the pipe. Thread-safe."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            command(os.getpid()),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, leader: int) -> None:
        """From now on, end this session when the parent dies."""
        self._send(f"+{leader}\n")

    def forget(self, leader: int) -> None:
        """Take a session that has ended off the list."""
        self._send(f"-{leader}\n")

    def close(self) -> None:
        """End the watchdog, and the sessions that are still on its list."""
        if self._popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.close()
        self._popen.wait()

    def _send(self, line: str) -> None:
        if self._popen.stdin is not None and not self._popen.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.write(line.encode())
                self._popen.stdin.flush()


def watchdog() -> Watchdog:
    """The watchdog of this process. It is started at the first call, and ended at exit."""
    with _starting:
        return _start()


@functools.cache
def _start() -> Watchdog:
    started = Watchdog()
    atexit.register(started.close)
    return started


def serve(parent: int) -> None:
    """Run as the watchdog: read sessions from standard input until the parent is gone, then end
    them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sessions: set[int] = set()
    pending = b""
    while True:
        # Ask for the parent before looking at the pipe, so that what a parent wrote just before
        # its death is still read.
        is_alive = os.getppid() == parent
        if not select.select([0], [], [], _PARENT_POLL_S if is_alive else 0)[0]:
            if is_alive:
                continue
            break
        chunk = os.read(0, 4096)
        if not chunk:
            break
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            leader = int(line[1:])
            (sessions.add if line[:1] == b"+" else sessions.discard)(leader)
    end_sessions(sessions, GRACE_S)
