"""Run one child process with a log file of its own."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from services.common.processes.groups import signal_session
from services.common.processes.last_error import last_error
from services.common.processes.watchdog import watchdog

GRACE_S = 10.0
"""By default, seconds from SIGTERM to SIGKILL."""

_LOG_TAIL_LINES = 15


class ChildProcess:
    """A child process that was started. Thread-safe; as a context manager it is ended on leaving.

    It leads a session of its own, so that Ctrl-C in a terminal reaches only its parent. What it
    left in its session is killed when it ends. When its parent dies, the watchdog ends the session.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        on_exit: Callable[[ChildProcess], None] | None = None,
    ) -> None:
        """Start it. `log` gets both output streams, after what the file holds. `env` is its whole
        environment. `on_exit` is called from another thread when it has ended.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.log_start = log.stat().st_size if log.is_file() else 0
        """Where the output of this process begins in the log, in bytes."""
        self.started_at = time.monotonic()
        self.returncode: int | None = None
        """None while it runs; negative for a signal."""
        self._on_exit = on_exit
        self._watchdog = watchdog()
        self._ended = threading.Event()
        with log.open("ab") as sink:
            self._popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self._popen.pid
        self._watchdog.watch(self.pid)
        threading.Thread(target=self._await_exit, name=f"wait-{log.stem}", daemon=True).start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.returncode is None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Block until it has ended; its return code, or None if it still runs after `timeout_s`."""
        return self.returncode if self._ended.wait(timeout_s) else None

    def send_signal(self, number: int) -> None:
        """Signal the process alone; does nothing if it has ended."""
        self._popen.send_signal(number)

    def terminate(self) -> None:
        """Send SIGTERM without waiting. A stopped process (SIGSTOP) is continued first."""
        self.send_signal(signal.SIGCONT)
        self.send_signal(signal.SIGTERM)

    def signal_session(self, number: int) -> None:
        """Signal the process and everything in its session; does nothing if it has ended."""
        if self.is_running:
            signal_session(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL to the whole session, and wait for the end."""
        self.signal_session(signal.SIGKILL)
        self._ended.wait()

    def end(self, grace_s: float = GRACE_S) -> None:
        """Send SIGTERM; after `grace_s` seconds, kill the whole session. Idempotent."""
        self.terminate()
        if self.wait(grace_s) is None:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def last_error(self) -> str:
        """Its last error, from its log; empty if the log has none."""
        return last_error(self.log, self.log_start)

    def log_tail(self) -> str:
        """The last lines of its log, for people. Leaves out JSON, which `last_error` reads."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            lines = log.read().decode(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        shown = "".join(f"\n    {line}" for line in lines if not line.startswith("{"))
        return f"{shown}\n    ({self.log})"

    def _await_exit(self) -> None:
        self.returncode = self._popen.wait()
        signal_session(self.pid, signal.SIGKILL)
        self._watchdog.forget(self.pid)
        self._ended.set()
        if self._on_exit is not None:
            self._on_exit(self)


def describe_exit(code: int | None) -> str:
    """For people: `ended with 1`, or the signal that ended the process."""
    if code is None or code >= 0:
        return f"ended with {code}"
    if -code == signal.SIGKILL:
        return "was ended by SIGKILL (by a person, or by the system for want of memory)"
    names = {number.value: number.name for number in signal.Signals}
    return f"was ended by {names.get(-code, f'signal {-code}')}"
