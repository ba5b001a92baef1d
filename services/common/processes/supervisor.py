"""Start named processes, wait until they are ready, and restart those that end by themselves.

A process is ended by SIGTERM, then by SIGKILL for everything in its session. When the supervisor
dies, even by SIGKILL, the watchdog ends all of its processes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from services.common.processes.errors import ProcessExited, ProcessNotReady
from services.common.processes.last_error import last_error
from services.common.processes.process import GRACE_S, ChildProcess, describe_exit
from services.common.runtime.process_secrets import without_keys

_POLL_S = 0.1
_RESTART_DELAY_S = 0.5
_LONGEST_DELAY_S = 8.0
"""The delay doubles with each quick end, up to this."""
_QUICK_END_S = 10.0
"""An end within this many seconds of the start is a quick end."""

GIVES_UP = os.EX_CONFIG
"""Exit status of a service that cannot go on until a person changes something; it is not started
again.
"""


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A process to run. `ready` must return quickly and never raise; with neither `ready` nor
    `pulse` it is ready as soon as it runs.
    """

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] | None = None
    """Added to the supervisor's environment, of which a process inherits everything but the
    gateway's keys.
    """
    cwd: Path | None = None
    ready: Callable[[], bool] | None = None
    pulse: Path | None = None
    """A file that the process touches once it does its work (FULGURITE_PULSE): it is ready then.
    Removed at each start.
    """
    ready_timeout_s: float = 60.0
    restart: bool = False
    """Start it again when it ends without being told to, unless it gave up (`GIVES_UP`) or made
    more than `max_restarts` quick ends in a row.
    """
    max_restarts: int = 20
    stop_timeout_s: float = GRACE_S
    """From SIGTERM to SIGKILL."""


class SupervisedProcess:
    """A process that is started again by its restart rule. Thread-safe. `on_exit(process,
    returncode)` is called from another thread when it ended without being told to.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        on_exit: Callable[[SupervisedProcess, int], None] | None = None,
    ) -> None:
        self.spec = spec
        self.restarts = 0
        self._on_exit = on_exit
        self._child: ChildProcess | None = None
        """The last one that was started."""
        self._lock = threading.RLock()
        self._is_wanted = False
        self._is_ready = False
        self._was_ever_ready = spec.ready is None and spec.pulse is None
        self._quick_ends = 0

    @property
    def name(self) -> str:
        """As in the spec."""
        return self.spec.name

    @property
    def pid(self) -> int | None:
        """The running process's id, else None."""
        child = self._child
        return child.pid if child is not None and child.is_running else None

    @property
    def returncode(self) -> int | None:
        """Of the last end; None while it runs, or if it never ran."""
        return self._child.returncode if self._child is not None else None

    def start(self) -> Self:
        """Start it and return at once; does nothing while it runs."""
        with self._lock:
            if self.pid is None:
                self._is_wanted = True
                self._spawn()
        return self

    def wait_ready(self, timeout_s: float | None = None) -> Self:
        """Block until the readiness check passes. Raises ProcessExited or ProcessNotReady, with the
        end of the log.
        """
        limit = self.spec.ready_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit
        while not self.is_ready():
            if self.pid is None and not self.will_restart():
                raise ProcessExited(
                    f"{self.name} {describe_exit(self.returncode)} before it was ready: "
                    f"{self.last_error()}{self._log_tail()}"
                )
            if time.monotonic() > deadline:
                raise ProcessNotReady(
                    f"{self.name} is not ready after {limit:.0f} s; the end of its log may say "
                    f"what it waits for:{self._log_tail()}"
                )
            time.sleep(_POLL_S)
        return self

    def is_ready(self) -> bool:
        """Whether it runs and its readiness check has passed since its last start; asks if it has
        not yet.
        """
        if self.pid is None:
            return False
        if not self._is_ready and self._passes_check():
            self._is_ready = self._was_ever_ready = True
        return self._is_ready

    def will_restart(self) -> bool:
        """Whether it is started again, now that it has ended."""
        # A process that never became ready is misconfigured: starting it again would only hide the
        # message.
        return (
            self._is_wanted
            and self._was_ever_ready
            and self.spec.restart
            and self.returncode != GIVES_UP
            and self._quick_ends <= self.spec.max_restarts
        )

    def last_error(self) -> str:
        """Why it ended, from its log; says so where the log has nothing."""
        start = self._child.log_start if self._child is not None else 0
        return last_error(self.spec.log, start) or "its log has no error"

    def request_stop(self) -> None:
        """Send SIGTERM without waiting. It will not be started again."""
        with self._lock:
            self._is_wanted = False
            if self._child is not None:
                self._child.terminate()

    def stop(self) -> None:
        """Send SIGTERM, then SIGKILL to it and everything in its session. Idempotent."""
        self.request_stop()
        if self._child is not None:
            self._child.end(self.spec.stop_timeout_s)

    def kill(self) -> None:
        """Kill the whole session, as a crash: the restart rule applies."""
        if self._child is not None:
            self._child.kill()

    def signal_session(self, number: int) -> None:
        """Signal it and everything in its session; does nothing if it does not run."""
        if self._child is not None:
            self._child.signal_session(number)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Block until it has ended; its return code, or None if it still runs."""
        return self._child.wait(timeout_s) if self._child is not None else None

    def _spawn(self) -> None:
        environment = {**without_keys(os.environ), **(self.spec.env or {})}
        if self.spec.pulse is not None:
            self.spec.pulse.parent.mkdir(parents=True, exist_ok=True)
            self.spec.pulse.unlink(missing_ok=True)
            environment["FULGURITE_PULSE"] = str(self.spec.pulse)
        self._is_ready = False
        self._child = ChildProcess(
            self.spec.argv,
            self.spec.log,
            env=environment,
            cwd=self.spec.cwd,
            on_exit=self._restart_after_exit,
        )

    def _restart_after_exit(self, child: ChildProcess) -> None:
        with self._lock:
            if not self._is_wanted or child is not self._child or child.returncode is None:
                return
        is_quick = time.monotonic() - child.started_at < _QUICK_END_S
        self._quick_ends = self._quick_ends + 1 if is_quick else 0
        if self._on_exit is not None:
            self._on_exit(self, child.returncode)
        if self.will_restart():
            time.sleep(min(_RESTART_DELAY_S * 2 ** max(0, self._quick_ends - 1), _LONGEST_DELAY_S))
            with self._lock:
                if self.will_restart() and self.pid is None:
                    self.restarts += 1
                    self._spawn()

    def _passes_check(self) -> bool:
        if self.spec.pulse is not None and not self.spec.pulse.exists():
            return False
        passes = self.spec.ready is None or self.spec.ready()
        # What answers for a process that has just died is another process.
        return passes and self.pid is not None

    def _log_tail(self) -> str:
        return self._child.log_tail() if self._child is not None else ""


class Supervisor:
    """A set of processes that live no longer than it does; stops them in reverse order. A context
    manager.
    """

    def __init__(self, on_exit: Callable[[SupervisedProcess, int], None] | None = None) -> None:
        self.processes: list[SupervisedProcess] = []
        self._on_exit = on_exit

    def add(self, spec: ProcessSpec) -> SupervisedProcess:
        """Take a process under supervision without starting it."""
        process = SupervisedProcess(spec, self._on_exit)
        self.processes.append(process)
        return process

    def start(self, spec: ProcessSpec) -> SupervisedProcess:
        """`add` and start; `wait_ready()` on the result waits for it."""
        return self.add(spec).start()

    def close(self) -> None:
        """Stop everything, last started first."""
        for process in reversed(self.processes):
            process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
