"""Calls a user's function, in the process that runs nothing else.

The parent process, `services.rewards.sandbox`, calls `prepare` once and then `score` or `call`, by
name. What they return crosses between processes as msgpack of plain types: the parent decodes it,
and runs nothing of it.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import resource
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from fulgurite.episodes.view import EpisodeView
from fulgurite.events import Episode
from services.common.processes.parent_death import end_with_parent
from services.common.runtime.error_text import clean, repr_of, text_of
from services.rewards.errors import PluginError, RewardFailed
from services.rewards.functions import Function, Value, label_of, load, named

SAFE_PATH = "PYTHONSAFEPATH"

OUT_OF_MEMORY = 77
"""Exit code of a process that reached its limit: it may have no memory left to say so otherwise."""


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """Rewards by name, or how the function failed, in words."""

    values: dict[str, Value] = {}
    failure: str | None = None


class Returned(msgspec.Struct, frozen=True, kw_only=True):
    """What the function returned, or how it failed, in words."""

    data: str = ""
    """The value in JSON."""
    unusable: str | None = None
    """A value that JSON does not have, with its type."""
    failure: str | None = None


class _Child(NamedTuple):
    """What a process holds."""

    process: int
    function: Function
    name: str
    label: str
    loop: asyncio.Runner


_children: list[_Child] = []
"""One in a process of the pool, none elsewhere."""


def restore_safe_path(value: str | None) -> None:
    """Set PYTHONSAFEPATH to a value, or delete it."""
    os.environ.pop(SAFE_PATH, None)
    if value is not None:
        os.environ[SAFE_PATH] = value


def refusal_of(reference: str, safe_path: str | None) -> str | None:
    """Say why a function cannot be loaded; None if it can."""
    restore_safe_path(safe_path)
    _lead_group()
    try:
        load(reference)
    except PluginError as error:
        return str(error)
    return None


def prepare(
    reference: str, safe_path: str | None, name: str, load_timeout_s: float, memory_mb: int
) -> None:
    """Load the function, then limit the memory."""
    restore_safe_path(safe_path)
    _lead_group()
    # Ends the process, as nothing else would: no episode is being scored yet, whose time
    # could be up.
    signal.setitimer(signal.ITIMER_REAL, load_timeout_s)
    function = load(reference)
    signal.setitimer(signal.ITIMER_REAL, 0)
    _children[:] = [_Child(os.getpid(), function, name, label_of(reference), asyncio.Runner())]
    if memory_mb:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def score(data: bytes) -> bytes:
    """Score an episode, in msgpack; returns `Scored` in msgpack."""
    return _reply(_score, data, Scored)


def call(data: bytes) -> bytes:
    """Call the function with the arguments, a list in JSON; returns `Returned` in msgpack."""
    return _reply(_call, data, Returned)


def _reply(
    ask: Callable[[_Child, bytes], Scored | Returned],
    data: bytes,
    failed: type[Scored] | type[Returned],
) -> bytes:
    child = _children[0]
    try:
        outcome = _tried(ask, child, data, failed)
        if os.getpid() != child.process:
            # The function forked, and this is its copy: it has no say.
            os._exit(0)
        return msgspec.msgpack.encode(outcome)
    except MemoryError:
        # What the function kept would be taken from the next episodes.
        os._exit(OUT_OF_MEMORY)


def _tried(
    ask: Callable[[_Child, bytes], Scored | Returned],
    child: _Child,
    data: bytes,
    failed: type[Scored] | type[Returned],
) -> Scored | Returned:
    """Raises MemoryError."""
    try:
        return ask(child, data)
    except MemoryError:
        raise
    except RewardFailed as error:
        return failed(failure=clean(str(error)))
    except BaseException as error:  # noqa: BLE001 - a user's function may raise anything, SystemExit and KeyboardInterrupt included
        return failed(failure=text_of(error))


def _score(child: _Child, data: bytes) -> Scored:
    given = child.function(EpisodeView(msgspec.msgpack.decode(data, type=Episode)))
    value = child.loop.run(given) if inspect.iscoroutine(given) else given
    return Scored(values=named(value, child.name, child.label))


def _call(child: _Child, data: bytes) -> Returned:
    given = cast("Callable[..., Any]", child.function)(*json.loads(data))
    value = child.loop.run(_awaited(given)) if inspect.isawaitable(given) else given
    try:
        return Returned(data=json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return Returned(unusable=f"{repr_of(value)} ({type(value).__name__})")


async def _awaited(given: Awaitable[Any]) -> Any:
    return await given


def _lead_group() -> None:
    """Lead a process group, which the worker's end does not reach; end with the worker all the
    same.
    """
    # First: until then, who kills the worker's process group kills this process with it.
    end_with_parent()
    os.setsid()
