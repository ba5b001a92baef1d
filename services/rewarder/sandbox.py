"""Processes in which a reward function runs: one verdict at a time each, in bounded time and memory.

A function that takes too long is ended with its process, as is one that crashes; another process takes its place. The memory it may take is
counted beyond what importing it took, as address space (`RLIMIT_AS`): what asks for more gets a MemoryError. Async functions have an event
loop for the life of their process, so that a client made at import keeps its connections. This bounds accidents; it keeps no secrets from a
function and stops no malice.
"""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import resource
from pathlib import Path
from typing import NamedTuple

import msgspec
from pebble import ProcessExpired, ProcessPool

from fulgurite.episode_view import EpisodeView
from fulgurite.events import Episode
from services.rewarder.errors import OutOfMemory, ProcessEnded, RewardFailed, TookTooLong
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

    out_of_memory: bool
    told: str


class Sandbox:
    """Runs one function. Close it."""

    def __init__(self, reference: str, name: str, limits: Limits) -> None:
        """`reference` can be loaded; `name` is the reward's where the function gives a plain number."""
        self._limits = limits
        # A fork of a process without threads: cheap, and it inherits no broker connection.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
        self._pool = ProcessPool(limits.processes, initializer=_prepare, initargs=(reference, name, limits.memory_mb), context=context)

    async def judge(self, episode: Episode) -> dict[str, float]:
        """Rewards by name; empty for none. Raises RewardFailed."""
        data = msgspec.msgpack.encode(episode)
        try:
            given = await asyncio.wrap_future(self._pool.schedule(_judge, (data,), timeout=self._limits.timeout_s))
        except TimeoutError as error:
            raise TookTooLong(f"no value within {self._limits.timeout_s:g} s") from error
        except ProcessExpired as error:
            raise ProcessEnded(f"its process ended with code {error.exitcode}") from error
        if not isinstance(given, Failed):
            return given
        if given.out_of_memory:
            raise OutOfMemory(f"it wanted more than {self._limits.memory_mb} MiB")
        raise RewardFailed(given.told)

    def close(self) -> None:
        """Ends the processes, whatever they do."""
        self._pool.stop()
        self._pool.join()


class _Child(NamedTuple):
    """What a process holds."""

    function: Function
    name: str
    loop: asyncio.Runner


_children: list[_Child] = []
"""One in a process of the pool, none elsewhere."""


def _prepare(reference: str, name: str, memory_mb: int) -> None:
    _children[:] = [_Child(load(reference).function, name, asyncio.Runner())]
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
        return Failed(True, "")
    except RewardFailed as error:
        return Failed(False, str(error))
    except Exception as error:  # noqa: BLE001 - a user's function may raise anything
        return Failed(False, f"{type(error).__name__}: {error}")
