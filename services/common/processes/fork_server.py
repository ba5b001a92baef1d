"""Run many processes to their end through one small process that forks them, the fork server.

Each process gets input, is watched, and is ended at its time limit. Closing the `ForkServer`, or
the death of this process, ends every process started here and its group.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from services.common.processes.errors import ForkServerFailed

_PROGRAM = Path(__file__).with_name("fork_server_main.py")
_TAIL_BYTES = 4096
"""Of standard output and standard error each: a traceback and some lines before it."""
_GRACE_S = 1.0
"""From SIGTERM to SIGKILL."""
_READY_TIMEOUT_S = 60.0
_DRAIN_S = 0.5
"""A process that outlives the one that ended may hold its output open; wait no longer than this."""
_STOP_S = 5.0
_DIED = "the fork server has ended, and all processes that it started with it; start again"


class Program(msgspec.Struct, frozen=True, omit_defaults=True):
    """What to run: an argv to execute, or a Python file or module for a fork of the server."""

    argv: tuple[str, ...]
    python: str | None = None
    """The interpreter of the fork server, for forks."""
    script: str | None = None
    module: str | None = None


class ProcessResult(msgspec.Struct, frozen=True):
    """How a process ended; `exit_code` is negative for a signal, as in `subprocess`."""

    exit_code: int
    is_overdue: bool
    """It was ended at its time limit."""
    output: str
    error_output: str
    seconds: float


class _Tail(asyncio.Protocol):
    """Keeps the end of what comes through a pipe."""

    def __init__(self) -> None:
        self.data = b""
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data = (self.data + data)[-_TAIL_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    async def text(self) -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self.closed.wait()
        return self.data.decode(errors="replace")


class ForkServer:
    """Starts processes and waits for them. Use as an async context manager."""

    def __init__(self, python: str, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        """`python` runs the server, which imports `modules` for the processes that it forks."""
        self._python = python
        self._modules = tuple(modules)
        self._environment = dict(environment)
        self._exits: dict[str, asyncio.Future[int]] = {}
        self._buffer = b""
        self._count = 0

    async def __aenter__(self) -> ForkServer:
        """Start the server and wait for its imports. Raises ForkServerFailed."""
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        self._socket, theirs = socket.socketpair()
        try:
            self._server = subprocess.Popen(  # noqa: ASYNC220  a fork and exec: milliseconds
                [self._python, str(_PROGRAM), str(theirs.fileno()), *self._modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            self._socket.close()
            raise ForkServerFailed(
                f"{self._python} cannot be run: {error.strerror}; choose another Python"
            ) from error
        finally:
            theirs.close()
        loop.add_reader(self._socket, self._on_readable)
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await self._ready
        except TimeoutError:
            await self._close()
            raise ForkServerFailed(
                f"importing {', '.join(self._modules)} took more than {_READY_TIMEOUT_S:.0f} s; "
                "preload fewer modules"
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
    ) -> ProcessResult:
        """Run to the end, at most `limit_s` seconds; cancelling ends the process too. Raises
        ForkServerFailed.

        With `output`, both streams go to that file instead of being kept.
        """
        self._count += 1
        job = f"j{self._count}"
        exited = self._exits[job] = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        is_overdue = False
        try:
            tails = await self._start(job, program, environment, cwd, stdin, output)
            try:
                async with asyncio.timeout(limit_s):
                    code = await asyncio.shield(exited)
            except TimeoutError:
                is_overdue = True
                code = await self._end(job, exited)
        except asyncio.CancelledError:
            self._signal(job, signal.SIGKILL)
            raise
        finally:
            del self._exits[job]
        shown, errors = [await tail.text() for tail in tails] or ["", ""]
        return ProcessResult(code, is_overdue, shown, errors, time.monotonic() - began)

    async def _start(
        self,
        job: str,
        program: Program,
        environment: Mapping[str, str],
        cwd: Path,
        stdin: bytes,
        output: BinaryIO | None,
    ) -> list[_Tail]:
        """Start a job; the ends of its output and of its error output, unless it has `output`."""
        loop = asyncio.get_running_loop()
        where = {"env": dict(environment), "cwd": str(cwd)}
        message = {"start": job, **where, **msgspec.to_builtins(program)}
        tails: list[_Tail] = []
        with contextlib.ExitStack() as stack:
            # A file, because writing to a pipe could block.
            given = stack.enter_context(tempfile.TemporaryFile())
            given.write(stdin)
            given.seek(0)
            fds = [given.fileno()]
            for _ in range(2):
                if output is not None:
                    fds.append(output.fileno())
                    continue
                reading, writing = os.pipe()
                stack.callback(os.close, writing)
                fds.append(writing)
                _, tail = await loop.connect_read_pipe(_Tail, os.fdopen(reading, "rb", 0))
                tails.append(tail)
            self._send(message, fds)
        return tails

    def _send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        data = json.dumps(message).encode() + b"\n"
        try:
            sent = socket.send_fds(self._socket, [data], fds) if fds else 0
            self._socket.sendall(data[sent:])
        except OSError as error:
            raise ForkServerFailed(f"{_DIED} ({error.strerror})") from error

    def _signal(self, job: str, number: int) -> None:
        """Signal a job's process group; nothing happens if it has gone."""
        with contextlib.suppress(ForkServerFailed):
            self._send({"signal": job, "number": int(number)})

    async def _end(self, job: str, exited: asyncio.Future[int]) -> int:
        self._signal(job, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                return await asyncio.shield(exited)
        self._signal(job, signal.SIGKILL)
        return await exited

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._fail_waiting()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._on_message(json.loads(line))

    def _on_message(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self._ready.set_result(None)
        elif "refused" in message:
            self._ready.set_exception(ForkServerFailed(message["refused"]))
        elif message["exited"] in self._exits:
            self._exits[message["exited"]].set_result(message["code"])

    def _fail_waiting(self) -> None:
        for future in (self._ready, *self._exits.values()):
            if not future.done():
                future.set_exception(ForkServerFailed(_DIED))

    async def _close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._fail_waiting()
        self._socket.close()  # the server kills all jobs when its socket ends
        try:
            await asyncio.to_thread(self._server.wait, _STOP_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
