"""Run a user's function in processes of its own, within limits of time and memory.

Each process scores one episode at a time, or answers one call.

A process whose function takes too long is killed; so is one that crashes. Another takes its place.
The memory it may take is counted beyond what importing it took, as address space (`RLIMIT_AS`):
what asks for more gets a MemoryError, and its process is ended with all that it kept. Async
functions have an event loop for the life of their process, so that a client made at import keeps
its connections. A process leads a process group: what the function started ends with it, unless it
left the group (`setsid`). If the process that made the sandbox is killed, the function's processes
end too (on Linux), but not what they started. Rewards cross between processes as msgpack of plain
types, other values as JSON, so that nothing a function returns is run here. This bounds accidents;
it keeps no secrets from a function and stops no malice.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import msgspec
from pebble import ProcessExpired, ProcessPool

from fulgurite.events import Episode
from services.rewards import child
from services.rewards.child import SAFE_PATH, Returned, Scored
from services.rewards.errors import (
    OutOfMemory,
    PluginError,
    ProcessEnded,
    ReturnedNoJson,
    RewardFailed,
    TookTooLong,
)
from services.rewards.functions import Value, label_of, named
from services.rewards.processes import ProcessContext

LOAD_TIMEOUT_S = 120.0
"""By default, seconds for importing a function: large libraries take their time on a busy machine.
"""

_Reply = TypeVar("_Reply")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one function."""

    processes: int
    """Episodes scored, or calls answered, at once."""
    timeout_s: float
    """Seconds that scoring one episode, or answering one call, may take."""
    memory_mb: int
    """MiB beyond what the loaded function takes; 0 for as much as there is."""
    load_timeout_s: float = LOAD_TIMEOUT_S
    """Seconds for importing it."""


class Sandbox:
    """Runs one function. Close it."""

    def __init__(self, reference: str, name: str, limits: Limits) -> None:
        """`reference` can be loaded; `name` is the reward's where the function gives a plain
        number.
        """
        self._limits = limits
        self._name = name
        self._label = label_of(reference)
        self._initargs = (
            reference,
            os.environ.get(SAFE_PATH),
            name,
            limits.load_timeout_s,
            limits.memory_mb,
        )
        self._pool = self._new_pool()

    async def score(self, episode: Episode) -> dict[str, Value]:
        """Rewards by name; empty for none. Raises RewardFailed."""
        reply = await self._reply(child.score, msgspec.msgpack.encode(episode))
        scored = _decoded(reply, Scored, "map of names to numbers")
        if scored.failure is not None:
            raise RewardFailed(scored.failure)
        return named(scored.values, self._name, self._label)

    async def call(self, *arguments: Any) -> Any:
        """Call the function with values that JSON has; return what it returns, as JSON has it.

        An async function is awaited. Raises RewardFailed; ReturnedNoJson if JSON does not have what
        it returned.
        """
        reply = await self._reply(child.call, json.dumps(arguments).encode())
        returned = _decoded(reply, Returned, "value")
        if returned.failure is not None:
            raise RewardFailed(returned.failure)
        if returned.unusable is not None:
            raise ReturnedNoJson(returned.unusable)
        return json.loads(returned.data)

    def close(self) -> None:
        """Ends the processes, whatever they do."""
        self._pool.stop()
        self._context.kill_all()
        self._pool.join()

    def _new_pool(self) -> ProcessPool:
        self._context = ProcessContext()
        return ProcessPool(
            self._limits.processes,
            initializer=child.prepare,
            initargs=self._initargs,
            context=self._context,
        )

    async def _reply(self, function: Callable[[bytes], bytes], data: bytes) -> bytes:
        """What a function of `child` returns. Raises RewardFailed."""
        try:
            return await self._reply_or_retry(function, data)
        except BrokenProcessPool as error:
            raise ProcessEnded("its processes ended twice without a word") from error
        except TimeoutError as error:
            raise TookTooLong(f"no value within {self._limits.timeout_s:g} s") from error
        except ProcessExpired as error:
            if self._limits.memory_mb and error.exitcode == child.OUT_OF_MEMORY:
                raise OutOfMemory(f"it wanted more than {self._limits.memory_mb} MiB") from error
            raise ProcessEnded(f"its process ended with code {error.exitcode}") from error

    async def _reply_or_retry(self, function: Callable[[bytes], bytes], data: bytes) -> bytes:
        pool = self._working_pool()
        try:
            return await self._ask(pool, function, data)
        except BrokenProcessPool:
            # One that ended while it had nothing to do, killed for want of memory say, ends its
            # pool: no fault of this episode.
            return await self._ask(self._working_pool(), function, data)

    def _ask(
        self, pool: ProcessPool, function: Callable[[bytes], bytes], data: bytes
    ) -> asyncio.Future[bytes]:
        try:
            return asyncio.wrap_future(
                pool.schedule(function, (data,), timeout=self._limits.timeout_s)
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
    with ProcessPool(1, context=ProcessContext()) as pool:
        try:
            refused = pool.schedule(
                child.refusal_of, (reference, os.environ.get(SAFE_PATH)), timeout=timeout_s
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


def _decoded(reply: bytes, kind: type[_Reply], expected: str) -> _Reply:
    try:
        return msgspec.msgpack.decode(reply, type=kind)
    except msgspec.MsgspecError as error:
        raise ProcessEnded(f"its process sent no {expected}") from error
