"""Kills what a dead supervisor left behind.

A small process beside the supervisor learns the leaders of the sessions it started over a pipe.
When the pipe closes or its parent changes, the supervisor is gone, however it died: every session
still listed gets SIGTERM, then SIGKILL. Run as a script by file, with the standard library alone,
so that it starts in milliseconds and survives whatever becomes of the environment.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_S = 5.0
"""From SIGTERM to SIGKILL, for sessions whose supervisor died."""

_PARENT_POLL_S = 1.0
"""A forked child of the supervisor may hold the pipe open; then the change of parent tells."""


class Watchdog:
    """The supervisor's end of the pipe."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The watchdog's own process id."""
        return self._popen.pid

    def watch(self, leader: int) -> None:
        """From now on, this session dies with the supervisor."""
        self._tell(f"+{leader}\n")

    def forget(self, leader: int) -> None:
        """This session is over."""
        self._tell(f"-{leader}\n")

    def close(self) -> None:
        """End the watchdog; sessions still watched are ended too."""
        if self._popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.close()
        self._popen.wait()

    def _tell(self, line: str) -> None:
        if self._popen.stdin is not None and not self._popen.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.write(line.encode())
                self._popen.stdin.flush()


def session_members(leader: int) -> list[int]:
    """Processes of the session: by /proc where there is one, else the process group's
    leader alone.
    """
    proc = Path("/proc")
    if not proc.is_dir():
        return [leader]
    found: list[int] = []
    for entry in proc.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError, PermissionError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == leader and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def kill_session(leader: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal the leader's process group and, where the system tells, every other process of its
    session.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
    for member in session_members(leader):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(member, number)


def _serve(parent: int) -> None:
    sessions: set[int] = set()
    pending = b""
    while True:
        # Asked before the pipe is looked at: what a parent wrote just before its death is still
        # read.
        alive = os.getppid() == parent
        if not select.select([0], [], [], _PARENT_POLL_S if alive else 0)[0]:
            if alive:
                continue
            break
        chunk = os.read(0, 4096)
        if not chunk:
            break
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            leader = int(line[1:])
            (sessions.add if line[:1] == b"+" else sessions.discard)(leader)
    for number in (signal.SIGCONT, signal.SIGTERM):
        for leader in sessions:
            kill_session(leader, number)
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and any(session_members(leader) for leader in sessions):
        time.sleep(0.05)
    for leader in sessions:
        kill_session(leader)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _serve(int(sys.argv[1]))
