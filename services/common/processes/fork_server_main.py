"""Fork, watch and end jobs for a parent process: the program of the fork server.

It is a small process without threads, run by path (`python fork_server_main.py FD [MODULE ...]`).
It uses the standard library alone, because it may run in another Python than ours, which need not
have Fulgurite. It imports the modules once. A job with a `script` or a `module` then runs as
`__main__` of a fork that has them already; any other job is executed. Every job leads a session of
its own. When a job exits, what it left in its process group is killed. When the parent ends, even
by SIGKILL, so do all jobs.

Protocol: one JSON object a line over the socket FD. To the server: {"start": id, "argv", "env",
"cwd", "script"|"module"} with three file descriptors (stdin, stdout, stderr), and {"signal": id,
"number"}. Back: {"ready": pid} or {"refused": why}, and {"exited": id, "code"}.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

_FDS_PER_JOB = 3
_FDS_PER_READ = 16
_NOT_EXECUTABLE = 127

Job = dict[str, Any]


def _load(file: str, function: str) -> Callable[..., Any]:
    """A function of a file beside this one.

    Not imported: an agent may have modules of the names `groups` and `services`.
    """
    return runpy.run_path(os.path.join(os.path.dirname(__file__), file))[function]  # noqa: PTH118, PTH120


signal_group: Callable[[int, int], bool] = _load("groups.py", "signal_group")
end_with_parent: Callable[[int], None] = _load("parent_death.py", "end_with_parent")


class Channel:
    """Lines and file descriptors from the parent, lines to it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._buffer = b""
        self._fds: list[int] = []

    def receive(self) -> list[Job] | None:
        """The messages that have come, or None when the parent is gone."""
        data, fds, _, _ = socket.recv_fds(self.connection, 65536, _FDS_PER_READ)
        self._fds.extend(fds)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [self._complete(json.loads(line)) for line in lines]

    def send(self, message: dict[str, Any]) -> None:
        """Raises OSError when the parent is gone."""
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def _complete(self, message: Job) -> Job:
        if "start" in message:
            message["fds"], self._fds = self._fds[:_FDS_PER_JOB], self._fds[_FDS_PER_JOB:]
        return message


class ForkServerMain:
    """The process that all jobs are forked from."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._pids: dict[str, int] = {}
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        # With a handler, the signal wakes `select` through the wake-up descriptor.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)

    def serve(self) -> Job | None:
        """Serve until the parent is gone (None), or return within a fork, with the job that it
        becomes.
        """
        while True:
            ready, _, _ = select.select([self._channel.connection, self._wake], [], [])
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    self._wake.recv(4096)
                self._reap()
            if self._channel.connection in ready:
                messages = self._channel.receive()
                if messages is None:
                    return None
                for message in messages:
                    if "start" in message:
                        job = self._start(message)
                        if job is not None:
                            return job
                    elif message["signal"] in self._pids:
                        _signal_job(self._pids[message["signal"]], message["number"])

    def kill_all(self) -> None:
        """End every job and its process group."""
        for pid in self._pids.values():
            _signal_job(pid, signal.SIGKILL)

    def _start(self, job: Job) -> Job | None:
        server = os.getpid()
        pid = os.fork()
        if pid:
            self._pids[job["start"]] = pid
            for fd in job["fds"]:
                os.close(fd)
            return None
        self._become(job, server)
        if "script" in job or "module" in job:
            return job
        try:
            os.execvpe(job["argv"][0], job["argv"], job["env"])
        except OSError as error:
            os.write(2, f"{job['argv'][0]}: {error.strerror}\n".encode())
        os._exit(_NOT_EXECUTABLE)

    def _become(self, job: Job, server: int) -> None:
        """In the fork: leave nothing of the server but its modules."""
        os.setsid()
        end_with_parent(server)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not ("script" in job or "module" in job):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for target, fd in enumerate(job["fds"]):
            os.dup2(fd, target)
        for held in (self._channel.connection, self._wake, self._waker):
            held.close()
        for fd in job["fds"]:
            os.close(fd)
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["env"])

    def _reap(self) -> None:
        for job, pid in list(self._pids.items()):
            if hasattr(os, "waitid"):
                # Looked at but not yet reaped, so that its number cannot belong to anyone else when
                # the group is killed.
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    continue
                signal_group(pid, signal.SIGKILL)
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._pids[job]
                self._channel.send({"exited": job, "code": os.waitstatus_to_exitcode(status)})


def _signal_job(pid: int, number: int) -> None:
    # A job that has just been forked does not lead a group yet.
    if not signal_group(pid, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def import_modules(names: list[str]) -> str | None:
    """Import them. Return why the process must not be forked afterwards, if so."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  whatever a foreign module raises is the user's to read
            return f"cannot import {name} with {sys.executable}: {type(error).__name__}: {error}"
    tasks = f"/proc/{os.getpid()}/task"
    count = len(os.listdir(tasks)) if os.path.isdir(tasks) else threading.active_count()  # noqa: PTH112, PTH208
    if count > 1:
        return (
            f"importing {', '.join(names)} started {count - 1} threads; a fork would lose them "
            "(for numpy: OMP_NUM_THREADS=1)"
        )
    gc.collect()
    gc.freeze()
    return None


def become_main(job: Job) -> None:
    """Run the job's file or module as Python itself would have."""
    arguments = job["argv"]
    if "module" in job:
        sys.argv = ["-m", *arguments]
        sys.path.insert(0, job["cwd"])
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        return
    script = job["script"]
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))  # noqa: PTH100, PTH120
    sys.excepthook = _hide_server(script)
    runpy.run_path(script, run_name="__main__")


def _hide_server(script: str) -> Any:
    """An exception hook whose traceback begins in the script."""

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        own = traceback
        while own is not None and own.tb_frame.f_code.co_filename != script:
            own = own.tb_next
        sys.__excepthook__(kind, error.with_traceback(own or traceback), own or traceback)

    return hook


def main() -> None:
    """Serve the parent; in a fork, be the job."""
    sys.path.pop(0)  # this file's folder: a job must not find the modules beside it
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    refusal = import_modules(sys.argv[2:])
    if refusal is not None:
        channel.send({"refused": refusal})
        return
    server = ForkServerMain(channel)
    channel.send({"ready": os.getpid()})
    job: Job | None = None
    try:
        job = server.serve()
    except OSError:
        server.kill_all()
        raise
    if job is None:
        server.kill_all()
    else:
        become_main(job)


if __name__ == "__main__":
    main()
