"""Small things that several gateways must agree on, with an expiry: idempotency keys, declared
groups, whose a conversation is. Redis (`redis://`, or `rediss://` for TLS, with a password if it
asks for one), or memory for one gateway.

`Idempotency` answers the same key and payload with the same reply, and refuses the same key with
another payload. An event's id derives from its key, so a reply that was lost and asked for again
never makes a second event.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.gateway.errors import Conflict, Unavailable

_DAY_S = 24 * 3600
KEEP_S = 7 * _DAY_S
_MEMORY_LIMIT = 200_000
_PREFIX = "fulgurite:gateway:"
_REDIS_TIMEOUT_S = 2.0
"""Of one connecting or one answer. A second try, on a new connection, is for connections that a
restarted Redis left behind.
"""


class Store(Protocol):
    """Keys with a value and an expiry. Every method raises Unavailable when the store does not
    answer.
    """

    async def get(self, key: str) -> bytes | None:
        """The value, if there is one."""
        ...

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Their values in one round trip."""
        ...

    async def put_new(self, key: str, value: bytes, ttl_s: int) -> bytes | None:
        """Store unless there is one already; returns that one."""
        ...

    async def put(self, key: str, value: bytes, ttl_s: int) -> None:
        """Store or replace."""
        ...

    async def ping(self) -> None:
        """Return if it answers."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class MemoryStore:
    """For one gateway; forgets at a restart."""

    def __init__(self, limit: int = _MEMORY_LIMIT) -> None:
        self._limit = limit
        self._values: dict[str, tuple[float, bytes]] = {}

    async def get(self, key: str) -> bytes | None:
        """See Store."""
        expiry, value = self._values.get(key, (0.0, b""))
        return value if expiry > time.monotonic() else None

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """See Store."""
        return [await self.get(key) for key in keys]

    async def put_new(self, key: str, value: bytes, ttl_s: int) -> bytes | None:
        """See Store."""
        known = await self.get(key)
        if known is None:
            await self.put(key, value, ttl_s)
        return known

    async def put(self, key: str, value: bytes, ttl_s: int) -> None:
        """See Store. The oldest go first when there are too many."""
        self._values.pop(key, None)
        self._values[key] = (time.monotonic() + ttl_s, value)
        while len(self._values) > self._limit:
            del self._values[next(iter(self._values))]

    async def ping(self) -> None:
        """See Store."""

    async def close(self) -> None:
        """See Store."""


class RedisStore:
    """For any number of gateways."""

    def __init__(self, url: str) -> None:
        """`url`: as redis-py takes it, for example
        `rediss://:password@host:6380/0?ssl_ca_certs=/etc/ca.pem`.
        """
        self._redis: Redis = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            url,
            socket_timeout=_REDIS_TIMEOUT_S,
            socket_connect_timeout=_REDIS_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),
        )

    async def get(self, key: str) -> bytes | None:
        """See Store."""
        try:
            value: Any = await self._redis.get(_PREFIX + key)
        except RedisError as error:
            raise _unavailable() from error
        return value

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """See Store."""
        try:
            values: Any = await self._redis.mget([_PREFIX + key for key in keys])
        except RedisError as error:
            raise _unavailable() from error
        return values

    async def put_new(self, key: str, value: bytes, ttl_s: int) -> bytes | None:
        """See Store."""
        try:
            known: Any = await self._redis.set(_PREFIX + key, value, ex=ttl_s, nx=True, get=True)
        except RedisError as error:
            raise _unavailable() from error
        return known

    async def put(self, key: str, value: bytes, ttl_s: int) -> None:
        """See Store."""
        try:
            await self._redis.set(_PREFIX + key, value, ex=ttl_s)
        except RedisError as error:
            raise _unavailable() from error

    async def ping(self) -> None:
        """See Store."""
        try:
            await self._redis.ping()  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues, reportUnknownVariableType]
        except RedisError as error:
            raise _unavailable() from error

    async def close(self) -> None:
        """See Store."""
        await self._redis.aclose()


class _Entry(msgspec.Struct, frozen=True):
    payload: str
    reply: str | None


class Idempotency:
    """Remembers which payload came with which key, and what was answered."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def reserve(self, scope: str, key: str, payload: bytes) -> str | None:
        """The reply given before, or None: go on (again, if it never came to a reply). Raises
        Conflict for another payload.
        """
        entry = _Entry(hashlib.sha256(payload).hexdigest(), None)
        known = await self._store.put_new(_name(scope, key), msgspec.json.encode(entry), KEEP_S)
        if known is None:
            return None
        before = msgspec.json.decode(known, type=_Entry)
        if before.payload != entry.payload:
            raise Conflict(
                f"Idempotency-Key {key!r} was used before with another payload. Use a new key "
                f"for a new event; the first one stands."
            )
        return before.reply

    async def store_reply(self, scope: str, key: str, payload: bytes, reply: str) -> None:
        """Keep the reply for whoever asks again."""
        entry = _Entry(hashlib.sha256(payload).hexdigest(), reply)
        await self._store.put(_name(scope, key), msgspec.json.encode(entry), KEEP_S)


def _name(scope: str, key: str) -> str:
    return "idempotency:" + hashlib.sha256(f"{scope}\0{key}".encode()).hexdigest()


def _unavailable() -> Unavailable:
    return Unavailable(
        "The store of idempotency keys and declared groups (Redis, REDIS_URL) does not answer. "
        "Try again shortly.",
        code="store_unavailable",
    )
