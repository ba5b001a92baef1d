"""Run a reward function in processes of its own, within limits of time and memory.

Each process scores one episode at a time.

A process whose function takes too long is killed; so is one that crashes. Another takes its place.
The memory it may take is counted beyond what importing it took, as address space (`RLIMIT_AS`):
what asks for more gets a MemoryError, and its process is ended with all that it kept. Async
functions have an event loop for the life of their process, so that a client made at import keeps
its connections. A process leads a process group: what the function started ends with it, unless it
left the group (`setsid`). If the process that made the sandbox is killed, the function's processes
end too (on Linux), but not what they started. Rewards cross between processes as msgpack of plain
types, so that nothing a function returns is run here. This bounds accidents; it keeps no secrets
from a function and stops no malice.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from pebble import ProcessExpired, ProcessPool

from fulgurite.episodes.view import EpisodeView
from fulgurite.events import Episode
from services.common.processes.groups import signal_group
from services.common.processes.parent_death import end_with_parent
from services.common.runtime.error_text import clean, text_of
from services.rewards.errors import (
    OutOfMemory,
    PluginError,
    ProcessEnded,
    RewardFailed,
    TookTooLong,
)
from services.rewards.functions import Function, Value, label_of, load, named

LOAD_TIMEOUT_S = 120.0
"""By default, seconds for importing a function: large libraries take their time on a busy machine.
"""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one function."""

    processes: int
    """Episodes scored at once."""
    timeout_s: float
    """Seconds that scoring one episode may take."""
    memory_mb: int
    """MiB beyond what the loaded function takes; 0 for as much as there is."""
    load_timeout_s: float = LOAD_TIMEOUT_S
    """Seconds for importing it."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What crosses between processes: rewards by name, or how the function failed, in words."""

    values: dict[str, Value] = {}
    failure: str | None = None


_OUT_OF_MEMORY = 77
"""Exit code of a process that reached its limit: it may have no memory left to say so otherwise."""
_SAFE_PATH = "PYTHONSAFEPATH"
_PRELOAD = "services.rewards.fork_server_preload"
_starter = ThreadPoolExecutor(1, "fork-server-starter")
"""Starts the fork server, which ends with the thread that started it: this one lives as long as the
process does.
"""


class Sandbox:
    """Runs one function. Close it."""

    def __init__(self, reference: str, name: str, limits: Limits) -> None:
        """`reference` can be loaded; `name` is the reward's where the function gives a plain
        number.
        """
        self._limits = limits
        self._name = name
        self._label = label_of(reference)
        self._initargs = (reference, os.environ.get(_SAFE_PATH), name, limits)
        self._pool = self._new_pool()

    async def score(self, episode: Episode) -> dict[str, Value]:
        """Rewards by name; empty for none. Raises RewardFailed."""
        data = msgspec.msgpack.encode(episode)
        try:
            given = await self._given(data)
        except BrokenProcessPool as error:
            raise ProcessEnded("its processes ended twice without a word") from error
        except TimeoutError as error:
            raise TookTooLong(f"no value within {self._limits.timeout_s:g} s") from error
        except ProcessExpired as error:
            if self._limits.memory_mb and error.exitcode == _OUT_OF_MEMORY:
                raise OutOfMemory(f"it wanted more than {self._limits.memory_mb} MiB") from error
            raise ProcessEnded(f"its process ended with code {error.exitcode}") from error
        outcome = _outcome(given)
        if outcome.failure is not None:
            raise RewardFailed(outcome.failure)
        return named(outcome.values, self._name, self._label)

    def close(self) -> None:
        """Ends the processes, whatever they do."""
        self._pool.stop()
        self._context.kill_all()
        self._pool.join()

    def _new_pool(self) -> ProcessPool:
        self._context = _processes()
        return ProcessPool(
            self._limits.processes,
            initializer=_prepare,
            initargs=self._initargs,
            context=self._context,
        )

    async def _given(self, data: bytes) -> bytes:
        pool = self._working_pool()
        try:
            return await self._ask(pool, data)
        except BrokenProcessPool:
            # One that ended while it had nothing to do, killed for want of memory say, ends its
            # pool: no fault of this episode.
            return await self._ask(self._working_pool(), data)

    def _ask(self, pool: ProcessPool, data: bytes) -> asyncio.Future[bytes]:
        try:
            return asyncio.wrap_future(
                pool.schedule(_score, (data,), timeout=self._limits.timeout_s)
            )
        except RuntimeError as error:
            # It broke just now.
            raise BrokenProcessPool(str(error)) from error

    def _working_pool(self) -> ProcessPool:
        if self._pool.active:
            return self._pool
        self.close()
        self._pool = self._new_pool()
        return self._pool


def check(reference: str, timeout_s: float = LOAD_TIMEOUT_S) -> None:
    """Load it once, in a process of its own. Raises PluginError."""
    with ProcessPool(1, context=_processes()) as pool:
        try:
            refused = pool.schedule(
                _refused, (reference, os.environ.get(_SAFE_PATH)), timeout=timeout_s
            ).result()
        except TimeoutError as error:
            raise PluginError(
                f"{reference!r}: importing it took more than {timeout_s:g} s: do slow work in "
                "the function"
            ) from error
        except ProcessExpired as error:
            raise PluginError(
                f"{reference!r}: importing it ended its process with code {error.exitcode}"
            ) from error
        except BrokenProcessPool as error:
            raise PluginError(
                f"{reference!r}: its process ended as soon as it was started; what it wrote "
                "says why"
            ) from error
    if refused is not None:
        raise PluginError(refused)


def _outcome(given: bytes) -> Outcome:
    try:
        return msgspec.msgpack.decode(given, type=Outcome)
    except msgspec.MsgspecError as error:
        raise ProcessEnded("its process sent no map of names to numbers") from error


class _Process(ForkServerProcess):
    """Leads a process group, and takes it with it."""

    _group_ended = False

    def is_alive(self) -> bool:
        alive = super().is_alive()
        if not alive and not self._group_ended:
            self._end_group()
        return alive

    def kill(self) -> None:
        self._end_group()
        super().kill()

    def _end_group(self) -> None:
        self._group_ended = True
        if self.pid is not None:
            signal_group(self.pid, signal.SIGKILL)


class _Context(ForkServerContext):
    """Starts processes, and knows them: a pool ends them one by one, and one that has only begun
    would say that its locks are gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._started: list[_Process] = []

    def Process(self, *args: Any, **given: Any) -> ForkServerProcess:  # pyright: ignore[reportIncompatibleVariableOverride] - a class there
        # Starts the fork server again if it has ended, before a thread of the pool would.
        _starter.submit(forkserver.ensure_running).result()
        self._started = [process for process in self._started if process.is_alive()]
        self._started.append(_Process(*args, **given))
        return self._started[-1]

    def kill_all(self) -> None:
        """At once, whatever they do."""
        for process in self._started:
            if process.is_alive():
                process.kill()


def _processes() -> _Context:
    """Forks of a process without threads: cheap, and they inherit no broker connection."""
    context = _Context()
    context.set_forkserver_preload([_PRELOAD, "__main__", __name__])
    before = os.environ.get(_SAFE_PATH)
    # It would look for our modules in the working directory first, where a project may have a
    # package of the same name.
    os.environ[_SAFE_PATH] = "1"
    try:
        _starter.submit(forkserver.ensure_running).result()
    finally:
        _restore(before)
    return context


def _restore(safe_path: str | None) -> None:
    os.environ.pop(_SAFE_PATH, None)
    if safe_path is not None:
        os.environ[_SAFE_PATH] = safe_path


class _Child(NamedTuple):
    """What a process holds."""

    process: int
    function: Function
    name: str
    label: str
    loop: asyncio.Runner


_children: list[_Child] = []
"""One in a process of the pool, none elsewhere."""


def _refused(reference: str, safe_path: str | None) -> str | None:
    """Why it cannot be loaded."""
    _restore(safe_path)
    _lead_group()
    try:
        load(reference)
    except PluginError as error:
        return str(error)
    return None


def _lead_group() -> None:
    """Lead a process group, which the worker's end does not reach; end with the worker all the
    same.
    """
    # First: until then, who kills the worker's process group kills this process with it.
    end_with_parent()
    os.setsid()


def _prepare(reference: str, safe_path: str | None, name: str, limits: Limits) -> None:
    _restore(safe_path)
    _lead_group()
    # Ends the process, as nothing else would: no episode is being scored yet, whose time
    # could be up.
    signal.setitimer(signal.ITIMER_REAL, limits.load_timeout_s)
    function = load(reference)
    signal.setitimer(signal.ITIMER_REAL, 0)
    _children[:] = [_Child(os.getpid(), function, name, label_of(reference), asyncio.Runner())]
    if limits.memory_mb:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + limits.memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _score(data: bytes) -> bytes:
    child = _children[0]
    try:
        outcome = _tried(child, data)
        if os.getpid() != child.process:
            # The function forked, and this is its copy: it has no say.
            os._exit(0)
        return msgspec.msgpack.encode(outcome)
    except MemoryError:
        # What the function kept would be taken from the next episodes.
        os._exit(_OUT_OF_MEMORY)


def _tried(child: _Child, data: bytes) -> Outcome:
    """Raises MemoryError."""
    try:
        given = child.function(EpisodeView(msgspec.msgpack.decode(data, type=Episode)))
        return Outcome(
            values=named(
                child.loop.run(given) if inspect.iscoroutine(given) else given,
                child.name,
                child.label,
            )
        )
    except MemoryError:
        raise
    except RewardFailed as error:
        return Outcome(failure=clean(str(error)))
    except BaseException as error:  # noqa: BLE001 - a user's function may raise anything, SystemExit and KeyboardInterrupt included
        return Outcome(failure=text_of(error))
