"""Recognise conversations of agents that name no rollout, by their messages
(`fulgurite.calls.conversations` says how). Only for calls with a plain key and no name.

A prompt that contains an answer costs one look-up, an answer one write. The write comes before the
answer leaves, so that the agent's next call finds it, also at another gateway of the same Redis.
The store holds keyed hashes and rollout ids for a limited time, and no text. While the store does
not answer, nothing is recognised: each call is a rollout of its own, and none fails or waits for
long (`store_patience`).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable
from typing import Any

import msgspec

from fulgurite.calls.conversations import AMBIGUOUS, MessageChain, owner_of, recognised
from services.common.runtime import logs
from services.common.runtime.off_loop import off_loop
from services.gateway.identity.store import Store
from services.gateway.identity.store_patience import StorePatience
from services.gateway.telemetry.metrics import Metrics

log = logs.get(__name__)

MEMORY_LIMIT = 100_000
"""Answers that a gateway without Redis remembers: some 30 MB."""


class ConversationMatcher:
    """Finds the rollout of a conversation, and remembers it."""

    def __init__(self, store: Store, secret: bytes, ttl_s: int, metrics: Metrics) -> None:
        self._store = store
        self._secret = secret
        self._ttl_s = ttl_s
        self._results = metrics.inference
        self._patience = StorePatience(
            metrics.inference.labels("store_down").inc,
            lambda: log.warning(
                "conversations are not recognised, so each call is a rollout of its own: the store "
                "(REDIS_URL) does not answer"
            ),
        )

    async def conversation(
        self, owner: str, user: str | None, alias: str, items: Iterable[Any], size: int = 0
    ) -> MessageChain | None:
        """The conversation of a request of about `size` bytes; None for one that is nested too
        deeply to be read.
        """
        salt = hmac.digest(
            self._secret, msgspec.json.encode(("conversation", owner, user, alias)), "sha256"
        )
        try:
            return await off_loop(size, lambda: MessageChain(salt, items))
        except RecursionError:
            return None

    async def find(self, conversation: MessageChain) -> str | None:
        """The rollout that the request continues; None if it opens one."""
        if not conversation.prefixes:
            return None
        found = await self._patience.ask(
            lambda: self._store.get_many([_key(prefix) for prefix in conversation.prefixes])
        )
        if found is None:
            return None
        values = [None if value is None else value.decode() for value in found]
        rollout = recognised(values)
        self._results.labels(
            "recognised" if rollout else "ambiguous" if AMBIGUOUS in values else "unknown"
        ).inc()
        return rollout

    async def remember(
        self, conversation: MessageChain, rollout_id: str, answers: Iterable[Iterable[Any]]
    ) -> None:
        """Remember the conversation's rollout for each answer that the agent may go on with."""
        chains = {
            chain for answer in answers if (chain := conversation.answered(answer)) is not None
        }
        if chains:
            await self._patience.ask(lambda: self._keep_all(list(chains), rollout_id))

    async def _keep_all(self, chains: list[str], rollout_id: str) -> None:
        if len(chains) == 1:
            await self._keep(chains[0], rollout_id)
        else:
            await asyncio.gather(*(self._keep(chain, rollout_id) for chain in chains))

    async def _keep(self, chain: str, rollout_id: str) -> None:
        known = await self._store.put_new(_key(chain), rollout_id.encode(), self._ttl_s)
        # Nothing but AMBIGUOUS is ever written over, so that two gateways that do this at once
        # agree.
        if owner_of(None if known is None else known.decode(), rollout_id) == AMBIGUOUS:
            await self._store.put(_key(chain), AMBIGUOUS.encode(), self._ttl_s)


def _key(chain: str) -> str:
    return f"conversation:{chain}"
