"""Processes in which a reward function runs: one verdict at a time each, in bounded time and memory.

A function that takes too long is ended with its process, as is one that crashes; another process takes its place. The memory it may take is
counted beyond what importing it took, as address space (`RLIMIT_AS`): what asks for more gets a MemoryError, and its process is ended with
all that it kept. Async functions have an event loop for the life of their process, so that a client made at import keeps its connections.
This bounds accidents; it keeps no secrets from a function and stops no malice.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import resource
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from pebble import ProcessExpired, ProcessPool

from fulgurite.episode_view import EpisodeView
from fulgurite.events import Episode
from services.rewarder.errors import OutOfMemory, PluginError, ProcessEnded, RewardFailed, TookTooLong
from services.rewarder.functions import Function, load, named


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one function."""

    processes: int
    """How many verdicts at once."""
    timeout_s: float
    """Seconds for one verdict."""
    memory_mb: int
    """MiB beyond what the loaded function takes; 0 for as much as there is."""


class Failed(NamedTuple):
    """How a function failed, in words that cross between processes."""

    told: str


_OUT_OF_MEMORY = 77
"""Exit code of a process that reached its limit: it may have no memory left to say so otherwise."""
_SAFE_PATH = "PYTHONSAFEPATH"


class Sandbox:
    """Runs one function. Close it."""

    def __init__(self, reference: str, name: str, limits: Limits) -> None:
        """`reference` can be loaded; `name` is the reward's where the function gives a plain number."""
        self._limits = limits
        self._initargs = (reference, os.environ.get(_SAFE_PATH), name, limits.memory_mb)
        self._pool = self._new_pool()

    async def judge(self, episode: Episode) -> dict[str, float]:
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
        if not isinstance(given, Failed):
            return given
        raise RewardFailed(given.told)

    def close(self) -> None:
        """Ends the processes, whatever they do."""
        self._pool.stop()
        self._context.kill_all()
        self._pool.join()

    def _new_pool(self) -> ProcessPool:
        self._context = _processes()
        return ProcessPool(self._limits.processes, initializer=_prepare, initargs=self._initargs, context=self._context)

    async def _given(self, data: bytes) -> dict[str, float] | Failed:
        pool = self._working_pool()
        try:
            return await self._ask(pool, data)
        except BrokenProcessPool:
            # One that ended while it had nothing to do, killed for want of memory say, ends its pool: no fault of this episode.
            return await self._ask(self._working_pool(), data)

    def _ask(self, pool: ProcessPool, data: bytes) -> asyncio.Future[dict[str, float] | Failed]:
        return asyncio.wrap_future(pool.schedule(_judge, (data,), timeout=self._limits.timeout_s))

    def _working_pool(self) -> ProcessPool:
        if self._pool.active:
            return self._pool
        self.close()
        self._pool = self._new_pool()
        return self._pool


def check(reference: str) -> None:
    """Load it once, in a process of its own. Raises PluginError."""
    with ProcessPool(1, context=_processes()) as pool:
        try:
            refused = pool.schedule(_refused, (reference, os.environ.get(_SAFE_PATH))).result()
        except ProcessExpired as error:
            raise PluginError(f"{reference!r}: importing it ended its process with code {error.exitcode}") from error
        except BrokenProcessPool as error:
            raise PluginError(f"{reference!r}: its process ended as soon as it was started; what it wrote says why") from error
    if refused is not None:
        raise PluginError(refused)


class _Context(ForkServerContext):
    """Starts processes, and knows them: a pool ends them one by one, and one that has only begun would say that its locks are gone."""

    def __init__(self) -> None:
        super().__init__()
        self._started: list[ForkServerProcess] = []

    def Process(self, *args: Any, **named: Any) -> ForkServerProcess:  # pyright: ignore[reportIncompatibleVariableOverride] - a class there
        self._started = [process for process in self._started if process.is_alive()]
        self._started.append(ForkServerProcess(*args, **named))
        return self._started[-1]

    def kill_all(self) -> None:
        """At once, whatever they do."""
        for process in self._started:
            if process.is_alive():
                process.kill()


def _processes() -> _Context:
    """Forks of a process without threads: cheap, and they inherit no broker connection."""
    context = _Context()
    context.set_forkserver_preload(["__main__", __name__])
    before = os.environ.get(_SAFE_PATH)
    # It would look for our modules in the working directory first, where a project may have a package of the same name.
    os.environ[_SAFE_PATH] = "1"
    try:
        forkserver.ensure_running()
    finally:
        _restore(before)
    return context


def _restore(safe_path: str | None) -> None:
    os.environ.pop(_SAFE_PATH, None)
    if safe_path is not None:
        os.environ[_SAFE_PATH] = safe_path


class _Child(NamedTuple):
    """What a process holds."""

    function: Function
    name: str
    loop: asyncio.Runner


_children: list[_Child] = []
"""One in a process of the pool, none elsewhere."""


def _refused(reference: str, safe_path: str | None) -> str | None:
    """Why it cannot be loaded."""
    _restore(safe_path)
    try:
        load(reference)
    except PluginError as error:
        return str(error)
    return None


def _prepare(reference: str, safe_path: str | None, name: str, memory_mb: int) -> None:
    _restore(safe_path)
    _children[:] = [_Child(load(reference), name, asyncio.Runner())]
    if memory_mb:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _judge(data: bytes) -> dict[str, float] | Failed:
    child = _children[0]
    try:
        given = child.function(EpisodeView(msgspec.msgpack.decode(data, type=Episode)))
        return named(child.loop.run(given) if inspect.iscoroutine(given) else given, child.name)
    except MemoryError:
        # What the function kept would be taken from the next episodes.
        os._exit(_OUT_OF_MEMORY)
    except RewardFailed as error:
        return Failed(str(error))
    except Exception as error:  # noqa: BLE001 - a user's function may raise anything
        return Failed(f"{type(error).__name__}: {error}")
