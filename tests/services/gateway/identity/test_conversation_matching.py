"""Conversations remembered and recognised over a store, and a store that does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from services.gateway.identity import store_patience
from services.gateway.identity.conversation_matching import ConversationMatcher
from services.gateway.identity.store import MemoryStore, RedisStore
from services.gateway.telemetry.metrics import Metrics
from services.local_stack.ports import free_port

SECRET = b"0123456789abcdef"
ASK: dict[str, Any] = {"role": "user", "content": "hi"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "hello"}
OTHER: dict[str, Any] = {"role": "assistant", "content": "hm"}


class CountingStore(MemoryStore):
    """Memory that counts its round trips."""

    def __init__(self) -> None:
        super().__init__()
        self.trips = 0

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        self.trips += 1
        return await super().get_many(keys)

    async def put_new(self, key: str, value: bytes, ttl_s: int) -> bytes | None:
        self.trips += 1
        return await super().put_new(key, value, ttl_s)


class StuckStore(MemoryStore):
    """Takes a question and never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        self.asked += 1
        await asyncio.sleep(3600)
        raise AssertionError


def results(metrics: Metrics) -> dict[str, float]:
    found: dict[str, float] = {}
    for result in ("recognised", "ambiguous", "unknown", "store_down"):
        found[result] = (
            metrics.registry.get_sample_value(
                "fulgurite_gateway_inference_total", {"result": result}
            )
            or 0
        )
    return found


async def test_an_answer_sent_back_is_recognised_at_one_look_up() -> None:
    store, metrics = CountingStore(), Metrics()
    matcher = ConversationMatcher(store, SECRET, 60, metrics)
    first = await matcher.conversation("owner", None, "policy", [ASK])
    assert first is not None
    assert await matcher.find(first) is None
    assert store.trips == 0, "nothing to look up in a first prompt"
    await matcher.remember(first, "ro_1", [[ANSWER], [OTHER]])
    for answer in (ANSWER, OTHER):
        follow_up = await matcher.conversation("owner", None, "policy", [ASK, answer, ASK])
        assert follow_up is not None
        before = store.trips
        assert await matcher.find(follow_up) == "ro_1"
        assert store.trips == before + 1
    unknown = await matcher.conversation(
        "owner", None, "policy", [ASK, {"role": "assistant", "content": "made up"}, ASK]
    )
    assert unknown is not None
    assert await matcher.find(unknown) is None
    assert results(metrics) == {"recognised": 2, "ambiguous": 0, "unknown": 1, "store_down": 0}


async def test_two_rollouts_with_the_same_words_are_neithers_from_then_on() -> None:
    metrics = Metrics()
    matcher = ConversationMatcher(MemoryStore(), SECRET, 60, metrics)
    first = await matcher.conversation("owner", None, "policy", [ASK])
    follow_up = await matcher.conversation("owner", None, "policy", [ASK, ANSWER, ASK])
    assert first is not None
    assert follow_up is not None
    for rollout in ("ro_1", "ro_1", "ro_2", "ro_1", "ro_2"):
        await matcher.remember(first, rollout, [[ANSWER]])
    assert await matcher.find(follow_up) is None
    assert results(metrics)["ambiguous"] == 1


@pytest.mark.parametrize(
    ("owner", "user", "alias"),
    [("other", None, "policy"), ("owner", "ann", "policy"), ("owner", None, "sql-writer")],
)
async def test_owners_users_and_aliases_never_meet(
    owner: str, user: str | None, alias: str
) -> None:
    matcher = ConversationMatcher(MemoryStore(), SECRET, 60, Metrics())
    first = await matcher.conversation("owner", None, "policy", [ASK])
    assert first is not None
    await matcher.remember(first, "ro_1", [[ANSWER]])
    elsewhere = await matcher.conversation(owner, user, alias, [ASK, ANSWER, ASK])
    assert elsewhere is not None
    assert await matcher.find(elsewhere) is None


async def test_an_answer_that_says_nothing_is_not_remembered() -> None:
    store = CountingStore()
    matcher = ConversationMatcher(store, SECRET, 60, Metrics())
    first = await matcher.conversation("owner", None, "policy", [ASK])
    assert first is not None
    await matcher.remember(first, "ro_1", [[], [{"type": "reasoning", "summary": []}]])
    assert store.trips == 0


async def test_what_is_nested_too_deeply_is_no_conversation() -> None:
    matcher = ConversationMatcher(MemoryStore(), SECRET, 60, Metrics())
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    assert (
        await matcher.conversation(
            "owner",
            None,
            "policy",
            [{"role": "user", "content": [{"type": "image", "data": deep}]}],
        )
        is None
    )


async def test_a_store_that_is_gone_is_asked_again_only_after_a_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = Metrics()
    matcher = ConversationMatcher(
        RedisStore(f"redis://127.0.0.1:{free_port()}/0"), SECRET, 60, metrics
    )
    follow_up = await matcher.conversation("owner", None, "policy", [ASK, ANSWER, ASK])
    assert follow_up is not None
    for _ in range(3):
        await matcher.remember(follow_up, "ro_1", [[ANSWER]])
        assert await matcher.find(follow_up) is None
    assert results(metrics)["store_down"] == 6
    monkeypatch.setattr(store_patience, "_PATIENCE_S", 0.01)
    stuck = StuckStore()
    patient = ConversationMatcher(stuck, SECRET, 60, metrics)
    assert await patient.find(follow_up) is None
    assert await patient.find(follow_up) is None
    assert stuck.asked == 1
    monkeypatch.setattr(store_patience, "_REST_S", -1.0)
    rested = ConversationMatcher(stuck, SECRET, 60, metrics)
    assert await rested.find(follow_up) is None
    assert await rested.find(follow_up) is None
    assert stuck.asked == 3
