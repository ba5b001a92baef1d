"""The same key with the same payload has the same answer; with another it is refused; and things
are forgotten in time.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from services.gateway.errors import Conflict, Unavailable
from services.gateway.identity.idempotency import Idempotency, status_idempotency
from services.gateway.identity.store import MemoryStore, RedisStore
from services.local_stack.ports import free_port


async def test_same_payload_same_answer_other_payload_conflict() -> None:
    idempotency = Idempotency(MemoryStore())
    assert await idempotency.reserve("s", "k", b"one") is None
    assert await idempotency.reserve("s", "k", b"one") is None, "not answered yet: go on again"
    await idempotency.store_reply("s", "k", b"one", "reply")
    assert await idempotency.reserve("s", "k", b"one") == "reply"
    with pytest.raises(Conflict, match="another payload"):
        await idempotency.reserve("s", "k", b"two")
    assert await idempotency.reserve("other scope", "k", b"two") is None


async def test_a_status_is_answered_while_the_store_is_silent() -> None:
    async def answer() -> dict[str, Any]:
        return {"status_id": "s"}

    for silent, refused in ((False, True), (True, False)):
        store = RedisStore(f"redis://127.0.0.1:{free_port()}/0") if silent else MemoryStore()
        idempotency = status_idempotency(store)
        assert await idempotency.answer_once("s", "k", b"one", answer) == {"status_id": "s"}
        with pytest.raises(Conflict) if refused else nullcontext():
            await idempotency.answer_once("s", "k", b"two", answer)
        await store.close()


async def test_memory_forgets_what_expired() -> None:
    store = MemoryStore()
    await store.put("a", b"1", 0)
    assert await store.get("a") is None
    assert await store.put_new("a", b"2", 60) is None
    assert await store.put_new("a", b"3", 60) == b"2"
    assert await store.get("a") == b"2"
    await store.close()


async def test_a_redis_that_is_not_there_is_said() -> None:
    store = RedisStore(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(Unavailable, match="REDIS_URL"):
        await store.get("a")
    with pytest.raises(Unavailable, match="REDIS_URL"):
        await store.put_new("a", b"", 1)
    with pytest.raises(Unavailable, match="REDIS_URL"):
        await store.put("a", b"", 1)
    await store.close()
