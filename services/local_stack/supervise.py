"""Starts named processes, tells when they are ready, starts them again when they fall, and leaves
none behind.

Each process leads a session of its own (Ctrl-C reaches only the supervisor) and writes to its own
log file. Stopping is SIGTERM to the process, then SIGKILL to everything in its session,
grandchildren included. If the supervisor itself dies, even by SIGKILL, the watchdog
(`services.local_stack.watchdog`) does the same to whatever it left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from services.common.runtime.process_secrets import without_keys
from services.local_stack.errors import ServiceExited, ServiceNotReady
from services.local_stack.last_words import last_words
from services.local_stack.watchdog import Watchdog, kill_session, session_members

_POLL_S = 0.1
_RESTART_DELAY_S = 0.5
_LONGEST_DELAY_S = 8.0
"""It doubles with each end that comes soon after the start."""
_SOON_S = 10.0
_LOG_TAIL_LINES = 15

GIVES_UP = os.EX_CONFIG
"""Exit status of a service that cannot go on until a person changes something; it is not started
again.
"""


class Restart(StrEnum):
    """What to do when a process ends without being told to."""

    never = "never"
    """Leave it: the state says so."""
    always = "always"
    """Start it again, unless it gave up (`GIVES_UP`) or ended soon after each of the last
    `max_restarts` starts.
    """


class State(StrEnum):
    """Where a process is in its life."""

    idle = "idle"
    """Not started, or stopped on request."""
    starting = "starting"
    """Runs, its readiness check has not passed yet."""
    ready = "ready"
    """Runs, its readiness check has passed once."""
    exited = "exited"
    """Ended by itself, and will not be started again."""


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
    restart: Restart = Restart.never
    max_restarts: int = 20
    stop_timeout_s: float = 10.0
    """From SIGTERM to SIGKILL."""


class Process:
    """One supervised process. Thread-safe. `on_exit(process, returncode)` is called from its own
    thread after an unasked-for end.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        watchdog: Watchdog,
        on_exit: Callable[[Process, int], None] | None = None,
    ) -> None:
        self.spec = spec
        self.restarts = 0
        self.returncode: int | None = None
        self._watchdog = watchdog
        self._on_exit = on_exit
        self._popen: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()
        self._wanted = False
        self._was_ready = False
        self._ever_ready = spec.ready is None and spec.pulse is None
        self._soon_ended = 0
        self._started_at = 0.0
        self._log_start = 0
        self._ended = threading.Event()

    @property
    def name(self) -> str:
        """As in the spec."""
        return self.spec.name

    @property
    def pid(self) -> int | None:
        """The running process's id, else None."""
        popen = self._popen
        return popen.pid if popen is not None and popen.returncode is None else None

    @property
    def state(self) -> State:
        """Where it is now."""
        if self.pid is not None:
            return State.ready if self._was_ready else State.starting
        return State.exited if self._wanted else State.idle

    def start(self) -> Self:
        """Start it and return at once; does nothing while it runs."""
        with self._lock:
            if self.pid is None:
                self._wanted = True
                self._spawn()
        return self

    def wait_ready(self, timeout_s: float | None = None) -> Self:
        """Block until the readiness check passes. Raises ServiceExited or ServiceNotReady, with the
        end of the log.
        """
        limit = self.spec.ready_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit
        while True:
            if self.pid is None and not self.will_restart():
                raise ServiceExited(
                    f"{self.name} {how_it_ended(self.returncode)} before it was ready: "
                    f"{self.last_words()}{self._tail()}"
                )
            if self.is_ready():
                return self
            if time.monotonic() > deadline:
                raise ServiceNotReady(f"{self.name} is not ready after {limit:.0f} s{self._tail()}")
            time.sleep(_POLL_S)

    def is_ready(self) -> bool:
        """Whether it runs and its readiness check has passed since its last start; asks if it has
        not yet.
        """
        if self.pid is None:
            return False
        if not self._was_ready and self._passes():
            self._was_ready = self._ever_ready = True
        return self._was_ready

    def will_restart(self) -> bool:
        """Whether it is started again, now that it has ended."""
        # A process that never became ready is misconfigured: starting it again would only hide the
        # message.
        lasting = self.returncode != GIVES_UP and self._soon_ended <= self.spec.max_restarts
        return self._wanted and self._ever_ready and self.spec.restart is Restart.always and lasting

    def last_words(self) -> str:
        """Why it ended, from its log; says so where the log has nothing."""
        return last_words(self.spec.log, self._log_start) or "its log has no error"

    def request_stop(self) -> None:
        """SIGTERM, without waiting. It will not be started again."""
        with self._lock:
            self._wanted = False
            if self.pid is not None and self._popen is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._popen.send_signal(signal.SIGCONT)
                    self._popen.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for it and everything in its session. Idempotent."""
        self.request_stop()
        popen = self._popen
        if popen is None:
            return
        if not self._ended.wait(self.spec.stop_timeout_s):
            kill_session(popen.pid)
            self._ended.wait()
        self._watchdog.forget(popen.pid)

    def kill(self) -> None:
        """SIGKILL for the whole session, as a crash: the restart policy applies."""
        pid, ended = self.pid, self._ended
        if pid is not None:
            kill_session(pid)
            ended.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and everything in its session, e.g. SIGSTOP and SIGCONT."""
        pid = self.pid
        for member in session_members(pid) if pid is not None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, number)

    def suspend(self) -> None:
        """SIGSTOP."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Block until it has ended; its return code, or None if it still runs."""
        return self.returncode if self._ended.wait(timeout_s) else None

    def _spawn(self) -> None:
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**without_keys(os.environ), **(self.spec.env or {})}
        if self.spec.pulse is not None:
            self.spec.pulse.parent.mkdir(parents=True, exist_ok=True)
            self.spec.pulse.unlink(missing_ok=True)
            environment["FULGURITE_PULSE"] = str(self.spec.pulse)
        self._was_ready = False
        self.returncode = None
        self._ended = threading.Event()
        self._started_at = time.monotonic()
        self._log_start = self.spec.log.stat().st_size if self.spec.log.is_file() else 0
        with self.spec.log.open("ab") as log:
            self._popen = subprocess.Popen(
                list(self.spec.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.spec.cwd,
                start_new_session=True,
            )
        self._watchdog.watch(self._popen.pid)
        watcher = threading.Thread(
            target=self._watch,
            args=(self._popen, self._ended),
            name=f"watch-{self.name}",
            daemon=True,
        )
        watcher.start()

    def _watch(self, popen: subprocess.Popen[bytes], ended: threading.Event) -> None:
        code = popen.wait()
        self.returncode = code
        kill_session(popen.pid)
        unasked = self._wanted
        ended.set()
        if not unasked:
            return
        self._watchdog.forget(popen.pid)
        self._soon_ended = (
            self._soon_ended + 1 if time.monotonic() - self._started_at < _SOON_S else 0
        )
        if self._on_exit is not None:
            self._on_exit(self, code)
        if self.will_restart():
            time.sleep(min(_RESTART_DELAY_S * 2 ** max(0, self._soon_ended - 1), _LONGEST_DELAY_S))
            with self._lock:
                if self.will_restart() and self.pid is None:
                    self.restarts += 1
                    self._spawn()

    def _passes(self) -> bool:
        if self.spec.pulse is not None and not self.spec.pulse.exists():
            return False
        passes = self.spec.ready is None or self.spec.ready()
        # Whoever answers for a process that has just died is another one.
        return passes and self.pid is not None

    def _tail(self) -> str:
        """The end of the log for people; JSON lines are left out, whose last error has
        been said.
        """
        if not self.spec.log.is_file():
            return ""
        with self.spec.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return (
            "".join(f"\n    {line}" for line in lines if not line.startswith("{"))
            + f"\n    ({self.spec.log})"
        )


def how_it_ended(code: int | None) -> str:
    """For people: `ended with 1`, or the signal that ended it."""
    if code is None or code >= 0:
        return f"ended with {code}"
    if -code == signal.SIGKILL:
        return "was ended by SIGKILL (by a person, or by the system for want of memory)"
    names = {number.value: number.name for number in signal.Signals}
    return f"was ended by {names.get(-code, f'signal {-code}')}"


class Supervisor:
    """A set of processes that live no longer than it does; stops them in reverse order. A context
    manager.
    """

    def __init__(self, on_exit: Callable[[Process, int], None] | None = None) -> None:
        self.processes: list[Process] = []
        self._on_exit = on_exit
        self._watchdog = Watchdog()

    def add(self, spec: ProcessSpec) -> Process:
        """Take a process under supervision without starting it."""
        process = Process(spec, self._watchdog, self._on_exit)
        self.processes.append(process)
        return process

    def start(self, spec: ProcessSpec) -> Process:
        """`add` and start; `wait_ready()` on the result waits for it."""
        return self.add(spec).start()

    def close(self) -> None:
        """Stop everything, last started first."""
        for process in reversed(self.processes):
            process.stop()
        self._watchdog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
