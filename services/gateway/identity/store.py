"""A key-value store with expiry, for what several gateways must agree on: idempotency keys,
declared groups, conversations.

It is Redis (`redis://`, or `rediss://` for TLS, with a password if needed), or memory for one
gateway.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.gateway.errors import Unavailable

_MEMORY_LIMIT = 200_000
_PREFIX = "fulgurite:gateway:"
_REDIS_TIMEOUT_S = 2.0
"""Seconds for one connection attempt or one reply. The second try, on a new connection, is for
connections that a restarted Redis left behind.
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
        """Store the value unless the key has one; returns the value that is stored now."""
        ...

    async def put(self, key: str, value: bytes, ttl_s: int) -> None:
        """Store or replace."""
        ...

    async def increment(self, key: str, ttl_s: int) -> int:
        """Add one to a count that begins at 0; returns it. It expires `ttl_s` after the last
        increment.
        """
        ...

    async def ping(self) -> None:
        """Return if it answers."""
        ...

    async def close(self) -> None:
        """Close connections."""
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

    async def increment(self, key: str, ttl_s: int) -> int:
        """See Store."""
        count = int(await self.get(key) or 0) + 1
        await self.put(key, str(count).encode(), ttl_s)
        return count

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

    async def increment(self, key: str, ttl_s: int) -> int:
        """See Store."""
        try:
            count: Any = await self._redis.incr(_PREFIX + key)
            await self._redis.expire(_PREFIX + key, ttl_s)
        except RedisError as error:
            raise _unavailable() from error
        return count

    async def ping(self) -> None:
        """See Store."""
        try:
            await self._redis.ping()  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues, reportUnknownVariableType]
        except RedisError as error:
            raise _unavailable() from error

    async def close(self) -> None:
        """See Store."""
        await self._redis.aclose()


def _unavailable() -> Unavailable:
    return Unavailable(
        "The store of idempotency keys and declared groups (Redis, REDIS_URL) does not answer. "
        "Try again shortly.",
        code="store_unavailable",
    )
