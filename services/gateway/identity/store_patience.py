"""Ask a store that calls can do without: while it does not answer, no call waits for it
for long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.gateway.errors import Unavailable

_PATIENCE_S = 0.25
"""A hundred times what a Redis nearby takes."""
_REST_S = 1.0
"""Seconds for which a store that failed is not asked."""

_T = TypeVar("_T")


class StorePatience:
    """Asks one store."""

    def __init__(self, unanswered: Callable[[], object], failed: Callable[[], object]) -> None:
        """`unanswered` is called for each question without an answer, `failed` before it where the
        store was asked.
        """
        self._unanswered = unanswered
        self._failed = failed
        self._ask_again_at = float("-inf")

    async def ask(self, question: Callable[[], Awaitable[_T]]) -> _T | None:
        """The answer; None if there is none."""
        if time.monotonic() >= self._ask_again_at:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    return await question()
            except (Unavailable, TimeoutError):
                self._ask_again_at = time.monotonic() + _REST_S
                self._failed()
        self._unanswered()
        return None
