"""Work on large inputs, kept from holding up everybody else's calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

_LARGE = 128 * 1024
"""Bytes of a body: less is worked through in a millisecond or two."""

_T = TypeVar("_T")


async def off_loop(size: int, work: Callable[[], _T]) -> _T:
    """What `work` returns; in a thread, where its input is large."""
    return work() if size < _LARGE else await asyncio.to_thread(work)
