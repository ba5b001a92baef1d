"""Notices that something was added to the index, once for all pages that are open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.common.runtime import logs
from services.console.pages.reading import Index

EVERY_S = 1.0
"""How often the index is asked while a page is open. Pages are promised to follow in 2 s."""

logger = logs.get()


class Changes:
    """Asks the index for its revision while somebody looks, and not otherwise."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._watchers: set[Callable[[], None]] = set()
        self._task: asyncio.Task[None] | None = None

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` whenever something was added. Returns what ends that."""
        self._watchers.add(changed)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._ask())

        def end() -> None:
            self._watchers.discard(changed)

        return end

    async def _ask(self) -> None:
        seen = await self._revision()
        while self._watchers:
            await asyncio.sleep(EVERY_S)
            revision = await self._revision()
            if revision is not None and revision != seen:
                seen = revision
                for changed in tuple(self._watchers):
                    changed()

    async def _revision(self) -> int | None:
        try:
            return await asyncio.to_thread(self._index.revision)
        # The edge of a request: the pages stay as they are, and it is asked again.
        except Exception:
            logger.exception("the index cannot be asked")
            return None
