"""Idempotency keys: the same key and payload get the same reply, and the same key with another
payload is refused.

An event's id derives from its key, so a request that is repeated because its reply was lost never
makes a second event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from services.common.runtime import logs
from services.gateway.errors import Conflict
from services.gateway.identity.store import Store
from services.gateway.identity.store_patience import StorePatience

log = logs.get(__name__)

_T = TypeVar("_T")

_DAY_S = 24 * 3600
KEEP_S = 7 * _DAY_S
STATUS_KEEP_S = 600
"""Seconds that a status's key is remembered: each attempt sends two at least, and Redis, when it is
full, first forgets what expires first.
"""
STATUSES_IN_MEMORY = 100_000
"""Statuses that a gateway without Redis remembers: some 65 MB."""


class _Entry(msgspec.Struct, frozen=True):
    payload: str
    reply: str | None


class Idempotency:
    """Remembers which payload came with which key, and what was answered."""

    def __init__(
        self, store: Store, keep_s: int = KEEP_S, patience: StorePatience | None = None
    ) -> None:
        """With `patience`, requests are answered without the store while it does not answer."""
        self._store = store
        self._keep_s = keep_s
        self._patience = patience

    async def answer_once(
        self,
        scope: str,
        key: str | None,
        payload: bytes,
        answer: Callable[[], Awaitable[dict[str, Any]]],
    ) -> dict[str, Any]:
        """The reply of `answer`, or the one given before to this key and payload. Without a key
        `answer` is always called. Raises Conflict for another payload, Unavailable.
        """
        if key is None:
            return await answer()
        earlier = await self.reserve(scope, key, payload)
        if earlier is not None:
            return msgspec.json.decode(earlier)
        reply = await answer()
        await self.store_reply(scope, key, payload, msgspec.json.encode(reply).decode())
        return reply

    async def reserve(self, scope: str, key: str, payload: bytes) -> str | None:
        """Reserve the key for this payload. Returns the reply given before, or None: go on (again,
        if no reply was given). Raises Conflict for another payload.
        """
        entry = _Entry(hashlib.sha256(payload).hexdigest(), None)
        value = msgspec.json.encode(entry)
        known = await self._ask(lambda: self._store.put_new(_name(scope, key), value, self._keep_s))
        if known is None:
            return None
        before = msgspec.json.decode(known, type=_Entry)
        if before.payload != entry.payload:
            raise Conflict(
                f"Idempotency-Key {key!r} was used before with another payload. Use a new key "
                "for a new event; the first one stands."
            )
        return before.reply

    async def store_reply(self, scope: str, key: str, payload: bytes, reply: str) -> None:
        """Keep the reply for repeated requests."""
        value = msgspec.json.encode(_Entry(hashlib.sha256(payload).hexdigest(), reply))
        await self._ask(lambda: self._store.put(_name(scope, key), value, self._keep_s))

    async def _ask(self, question: Callable[[], Awaitable[_T]]) -> _T | None:
        return await (question() if self._patience is None else self._patience.ask(question))


def status_idempotency(store: Store) -> Idempotency:
    """For statuses: what a silent store forgets does no harm, since the event of a status that is
    repeated has the same id.
    """
    patience = StorePatience(
        lambda: None,
        lambda: log.warning(
            "another status with a used Idempotency-Key is not refused: the store (REDIS_URL) "
            "does not answer"
        ),
    )
    return Idempotency(store, STATUS_KEEP_S, patience)


def _name(scope: str, key: str) -> str:
    return "idempotency:" + hashlib.sha256(f"{scope}\0{key}".encode()).hexdigest()
