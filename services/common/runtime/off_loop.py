"""Runs work on large inputs in a thread, so that it does not block the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

_LARGE = 128 * 1024
"""Bytes. Smaller bodies take a millisecond or two."""

_T = TypeVar("_T")


async def off_loop(size: int, work: Callable[[], _T]) -> _T:
    """Run `work` and return its result; in a thread if its input is large."""
    return work() if size < _LARGE else await asyncio.to_thread(work)
