"""Promise 1: no reply and no finish-reason chunk leaves before Kafka acknowledged the call. Three
brokers, replication 3.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from fulgurite.enums import CallOutcome
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}
ROLLOUT = "x-fulgurite-rollout-id"
STREAMS: dict[str, tuple[dict[str, Any], bytes]] = {
    CHAT: (BODY, b'"finish_reason":"stop"'),
    "/v1/completions": ({"model": "policy", "prompt": "hi"}, b'"finish_reason":"stop"'),
    "/v1/messages": (BODY | {"max_tokens": 16}, b"message_stop"),
    "/v1/responses": ({"model": "policy", "input": "hi"}, b"response.completed"),
}
"""Each API's request, and what tells that its answer is complete."""
ENDS = (
    *(marker for _, marker in STREAMS.values()),
    b"[DONE]",
    b"content_block_stop",
    b"message_delta",
    b".done",
)
HELD_S = 4.0
"""How long nothing is seen to leave: a thousand times what an acknowledgement takes."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    kafka3: LocalKafka, stub: Stub, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Gateway]:
    settings = kafka_settings(kafka3.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.", replication=3)
    async with running_gateway(
        settings, stub.url, tmp_path_factory.mktemp("gateway"), FULGURITE_LOG_STALL_S="3"
    ) as running:
        for _ in range(24):
            # Every partition's leader has been heard once.
            assert (await running.json(CHAT, BODY))[0] == 200
        yield running


async def until_answered(gateway: Gateway, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """As OpenAI's clients do: a 503 is tried again."""
    for _ in range(60):
        status, reply = await gateway.json(CHAT, body)
        if status != 503:
            return status, reply
        await asyncio.sleep(0.5)
    raise AssertionError("the log never came back")


async def lines(response: Any) -> AsyncIterator[bytes]:
    while line := await response.content.readline():
        if line.strip():
            yield line.strip()


async def test_the_promise_is_full_with_three_brokers(gateway: Gateway) -> None:
    status, report = await gateway.get("/readyz")
    assert status == 200
    assert report["topics"]["durability"]["full"] is True
    assert report["topics"]["durability"]["min_insync_replicas"] == 2


async def test_with_one_of_three_brokers_killed_replies_go_on(
    gateway: Gateway, kafka3: LocalKafka, stub: Stub
) -> None:
    stub.reset()
    kafka3.kill(0)
    try:
        completions: list[str] = []
        for _ in range(24):
            status, reply = await until_answered(gateway, BODY)
            assert status == 200
            completions.append(reply["id"])
        recorded = {
            call.call_id for call in await gateway.calls() if call.outcome is CallOutcome.success
        }
        assert set(completions) <= recorded
    finally:
        await asyncio.to_thread(kafka3.restart, 0)


async def test_with_two_of_three_stopped_nothing_leaves_until_they_wake(
    gateway: Gateway, kafka3: LocalKafka, stub: Stub
) -> None:
    stub.reset()
    await until_answered(gateway, BODY)
    kafka3.suspend(1)
    kafka3.suspend(2)
    try:
        whole = asyncio.create_task(gateway.json(CHAT, BODY))
        arrived: dict[str, list[bytes]] = {path: [] for path in STREAMS}
        rollouts: list[str] = []

        async def read(path: str) -> None:
            async with gateway.post(path, STREAMS[path][0] | {"stream": True}) as response:
                rollouts.append(response.headers[ROLLOUT])
                async for line in lines(response):
                    arrived[path].append(line)

        streams = [asyncio.create_task(read(path)) for path in STREAMS]
        await asyncio.sleep(HELD_S)
        assert len(stub.requests) >= 1 + len(STREAMS)
        assert not whole.done(), "a reply left before the log had it"
        for path, stream in zip(STREAMS, streams, strict=True):
            assert not stream.done()
            said = b"".join(arrived[path])
            assert b" there" in said, "what comes before the end is not held"
            assert not [end for end in ENDS if end in said], (
                f"the end of {path} left before the log had it"
            )
        # By now it is known that the log is unavailable: new calls are refused before anything is
        # generated.
        asked = len(stub.requests)
        status, reply = await gateway.json(CHAT, BODY)
        assert (status, reply["error"]["code"], len(stub.requests)) == (
            503,
            "log_unavailable",
            asked,
        )
        status, report = await gateway.get("/readyz")
        assert (status, "has not acknowledged" in report["log"]["problem"]) == (503, True)
    finally:
        kafka3.resume(1)
        kafka3.resume(2)
    status, reply = await asyncio.wait_for(whole, 60)
    await asyncio.wait_for(asyncio.gather(*streams), 60)
    assert status == 200
    for path, (_, marker) in STREAMS.items():
        assert marker in b"".join(arrived[path])
    assert arrived[CHAT][-1] == b"data: [DONE]"
    calls = await gateway.calls()
    assert reply["id"] in {call.call_id for call in calls}
    assert sorted(call.rollout_id for call in calls if call.rollout_id in rollouts) == sorted(
        rollouts
    )
    status, _ = await until_answered(gateway, BODY)
    assert status == 200
