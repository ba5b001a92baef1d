"""From a call as the log has it to the complete call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fulgurite.calls.claim_checks import claims_of
from fulgurite.calls.deltas import restore
from fulgurite.errors import BadClaim, BrokenDelta
from fulgurite.events import LlmCall
from fulgurite.tokens import PromptHashes
from services.common.blobs.blob_store import redeemed
from services.common.kafka.dead_letters import actions_of
from services.common.kafka.logged_calls import CallReader
from services.common.streaming.worker import Rejected

_CONVERSATIONS = 10_000
"""Prompts whose hashes are kept for the next turn; half a kilobyte each."""

FindCall = Callable[[str], LlmCall | None]
"""Returns a complete call by its id, if it is in memory."""

Expand = Callable[[LlmCall, FindCall], Awaitable[LlmCall]]


class CallExpander:
    """Restores deltas from their parents, in memory or in the log."""

    def __init__(self, reader: CallReader) -> None:
        self._reader = reader
        self._hashes = PromptHashes(_CONVERSATIONS)

    async def expand(self, call: LlmCall, find: FindCall) -> LlmCall:
        """Return the complete call, once its payloads in the blob store are proved to be there.

        Raises Rejected, LogUnavailable; OSError if the blob store does not answer.
        """
        complete = call
        try:
            if call.parent is not None:
                complete = await self._restore(call, call.parent.call_id, find)
            if claims_of(complete):
                await asyncio.to_thread(redeemed, complete)
        except (BrokenDelta, BadClaim) as error:
            raise Rejected(str(error), actions_of(complete.mode, [complete])) from error
        return complete

    async def _restore(self, delta: LlmCall, parent_id: str, find: FindCall) -> LlmCall:
        parent = find(parent_id)
        if parent is not None:
            return restore(delta, parent, hashes=self._hashes)
        return await asyncio.to_thread(self._reader.complete_call, delta, find)
