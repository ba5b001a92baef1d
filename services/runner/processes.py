"""Agent processes, as the runner sees them: started through one `launcher.py`, fed, watched, and
ended at their deadline.

Promise: closing `Processes`, or the death of this process, ends every process started here and its
group.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from services.runner.errors import BadCommand, LauncherFailed

TAIL_BYTES = 4096
"""Of standard output and standard error each: a traceback and some lines before it."""

TERMINATE_GRACE_S = 1.0
"""Between SIGTERM and SIGKILL."""

_LAUNCHER = Path(__file__).with_name("launcher.py")
_READY_TIMEOUT_S = 60.0
_DRAIN_S = 0.5


class Program(msgspec.Struct, frozen=True):
    """What to run: an argv to execute, or a Python file or module for a fork of the launcher."""

    argv: tuple[str, ...]
    python: str | None = None
    """The interpreter of the launcher, for forks."""
    script: str | None = None
    module: str | None = None


class Ended(msgspec.Struct, frozen=True):
    """How a process ended; `exit_code` is negative for a signal, as in `subprocess`."""

    exit_code: int
    overdue: bool
    output: str
    error_output: str
    seconds: float


def find_program(command: Sequence[str], path: str | None, preload: bool) -> Program:
    """Look a command up on this PATH. Raises BadCommand."""
    if not command:
        raise BadCommand(
            "no command: put the agent's command after `--`, for example `-- python agent.py`"
        )
    executable = shutil.which(command[0], path=path)
    if executable is None:
        raise BadCommand(f"{command[0]}: no such program on PATH={path}")
    if not preload:
        return Program((executable, *command[1:]))
    if not Path(command[0]).name.startswith("python") or len(command) < 2:
        raise BadCommand(
            "--preload needs a command of the form `python FILE [arguments]` or `python -m "
            "MODULE [arguments]`"
        )
    if command[1] == "-m" and len(command) > 2:
        return Program(tuple(command[3:]), executable, module=command[2])
    if command[1].startswith("-"):
        raise BadCommand(
            f"--preload cannot honour the Python option {command[1]}: give FILE or -m MODULE first"
        )
    if not Path(command[1]).is_file():
        raise BadCommand(f"{command[1]}: no such file")
    return Program(tuple(command[2:]), executable, script=command[1])


class _Tail(asyncio.Protocol):
    """Keeps the end of what comes through a pipe."""

    def __init__(self) -> None:
        self.data = b""
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data = (self.data + data)[-TAIL_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def text(self) -> str:
        return self.data.decode(errors="replace")


class Processes:
    """Starts processes and waits for them. Use as an async context manager."""

    def __init__(self, python: str, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self._python = python
        self._modules = tuple(modules)
        self._environment = dict(environment)
        self._ready: asyncio.Future[int] | None = None
        self._exits: dict[str, asyncio.Future[int]] = {}
        self._buffer = b""
        self._count = 0

    async def __aenter__(self) -> Processes:
        """Start the launcher and wait for its imports. Raises LauncherFailed."""
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        self._socket, theirs = socket.socketpair()
        try:
            self._launcher = subprocess.Popen(  # noqa: ASYNC220  a fork and exec: milliseconds
                [self._python, str(_LAUNCHER), str(theirs.fileno()), *self._modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            self._socket.close()
            raise LauncherFailed(f"{self._python}: {error.strerror}") from error
        finally:
            theirs.close()
        loop.add_reader(self._socket, self._on_readable)
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await self._ready
        except TimeoutError:
            await self._close()
            raise LauncherFailed(
                f"importing {', '.join(self._modules)} took more than {_READY_TIMEOUT_S:.0f} s"
            ) from None
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything."""
        await self._close()

    async def run(
        self,
        program: Program,
        *,
        environment: Mapping[str, str],
        cwd: Path,
        stdin: bytes = b"",
        limit_s: float | None = None,
        output: BinaryIO | None = None,
    ) -> Ended:
        """Run to the end, at most `limit_s` seconds; cancelling ends the process too. Raises
        LauncherFailed.

        With `output`, both streams go to that file instead of being kept.
        """
        self._count += 1
        job = f"j{self._count}"
        exited = self._exits[job] = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        tails: list[_Tail] = []
        given = tempfile.TemporaryFile()  # noqa: SIM115  closed below; a file, because writing to a pipe could block
        fds: list[int] = []
        try:
            given.write(stdin)
            given.seek(0)
            fds.append(os.dup(given.fileno()))
            for _ in range(2):
                fds.append(os.dup(output.fileno()) if output else await self._pipe(tails))  # noqa: PERF401 - closed below, also halfway
            self._start(job, program, environment, cwd, fds)
        except BaseException:
            self._exits.pop(job, None)
            raise
        finally:
            given.close()
            for fd in fds:
                os.close(fd)
        overdue = False
        try:
            try:
                async with asyncio.timeout(limit_s):
                    code = await asyncio.shield(exited)
            except TimeoutError:
                overdue = True
                code = await self._end(job, exited)
        except asyncio.CancelledError:
            self.signal(job, signal.SIGKILL)
            raise
        finally:
            self._exits.pop(job, None)
        for tail in tails:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_S):
                    await tail.closed.wait()
        texts = [tail.text() for tail in tails] or ["", ""]
        return Ended(code, overdue, texts[0], texts[1], time.monotonic() - began)

    def signal(self, job: str, number: int) -> None:
        """Signal a job's process group; nothing happens if it has gone."""
        with contextlib.suppress(OSError):
            self._socket.sendall(
                json.dumps({"signal": job, "number": int(number)}).encode() + b"\n"
            )

    async def _pipe(self, tails: list[_Tail]) -> int:
        """The writing end of a pipe whose other end is kept in a tail."""
        reading, writing = os.pipe()
        _, tail = await asyncio.get_running_loop().connect_read_pipe(
            _Tail, os.fdopen(reading, "rb", 0)
        )
        tails.append(tail)
        return writing

    def _start(
        self, job: str, program: Program, environment: Mapping[str, str], cwd: Path, fds: list[int]
    ) -> None:
        message: dict[str, Any] = {
            "start": job,
            "argv": program.argv,
            "env": dict(environment),
            "cwd": str(cwd),
        }
        if program.script is not None:
            message["script"] = program.script
        if program.module is not None:
            message["module"] = program.module
        data = json.dumps(message).encode() + b"\n"
        try:
            sent = socket.send_fds(self._socket, [data], fds)
            self._socket.sendall(data[sent:])
        except OSError as error:
            raise LauncherFailed(
                f"the process that starts agents is gone: {error.strerror}"
            ) from error

    async def _end(self, job: str, exited: asyncio.Future[int]) -> int:
        """SIGTERM, a moment, SIGKILL."""
        self.signal(job, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TERMINATE_GRACE_S):
                return await asyncio.shield(exited)
        self.signal(job, signal.SIGKILL)
        return await exited

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._on_gone()
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._on_message(cast(dict[str, Any], json.loads(line)))

    def _on_message(self, message: dict[str, Any]) -> None:
        assert self._ready is not None
        if "ready" in message:
            self._ready.set_result(message["ready"])
        elif "refused" in message:
            self._ready.set_exception(LauncherFailed(message["refused"]))
        elif "exited" in message:
            waiting = self._exits.get(message["exited"])
            if waiting is not None and not waiting.done():
                waiting.set_result(message["code"])

    def _on_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        waiting = [*([self._ready] if self._ready else []), *self._exits.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(LauncherFailed("the process that starts agents died"))

    async def _close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._fail_waiting()
        self._socket.close()  # the launcher kills all jobs when its socket ends
        try:
            await asyncio.to_thread(self._launcher.wait, 5.0)
        except subprocess.TimeoutExpired:
            self._launcher.kill()
            self._launcher.wait()
