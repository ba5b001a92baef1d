"""A fair queue: calls of many keys wait for a few places. Keys take turns; the calls of one key
keep their order.

When the queue is full, a newcomer replaces the latest call of the key with most calls waiting, if
its own key has fewer. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Round-robin over keys, first in, first out within each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        # In order of turns: the first key is served next.
        self._waiting: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        return self._size

    def put(self, key: str, call: T) -> T | None:
        """Queue a call. Returns the call that there is no room for, if any: this one, or the latest
        of the key with most calls.
        """
        if self._size >= self._limit:
            greediest = max(self._waiting, key=lambda other: len(self._waiting[other]), default=key)
            if len(self._waiting.get(greediest, ())) <= len(self._waiting.get(key, ())) + 1:
                return call
            out = self._waiting[greediest].pop()
            self._size -= 1
        else:
            out = None
        self._waiting.setdefault(key, deque()).append(call)
        self._size += 1
        return out

    def pop(self, may: Callable[[str], bool] = lambda _: True) -> T | None:
        """The call whose turn it is, of the keys that may have one; None if none of these waits."""
        key = next(filter(may, self._waiting), None)
        if key is None:
            return None
        line = self._waiting.pop(key)
        call = line.popleft()
        self._size -= 1
        if line:
            # Behind all other keys.
            self._waiting[key] = line
        return call

    def leave(self, key: str, call: T) -> None:
        """Remove a call that waits no longer, if it is in the queue."""
        line = self._waiting.get(key)
        if line is None or call not in line:
            return
        line.remove(call)
        self._size -= 1
        if not line:
            del self._waiting[key]
