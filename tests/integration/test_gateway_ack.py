"""Promise 1: no reply and no finish-reason chunk leaves before Kafka acknowledged the call. Three brokers, replication 3."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from fulgurite.kinds import CallOutcome
from services.stack.kafka_local import LocalKafka
from tests.integration.gateway_process import Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub, running_stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}
ROLLOUT = "x-fulgurite-rollout-id"
HELD_S = 4.0
"""How long nothing is seen to leave: a thousand times what an acknowledgement takes."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub() -> AsyncGenerator[Stub]:
    async with running_stub() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(kafka3: LocalKafka, stub: Stub, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Gateway]:
    settings = kafka_settings(kafka3.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.", replication=3)
    async with running_gateway(settings, stub.url, tmp_path_factory.mktemp("gateway"), FULGURITE_LOG_STALL_S="3") as running:
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


async def test_with_one_of_three_brokers_killed_replies_go_on(gateway: Gateway, kafka3: LocalKafka, stub: Stub) -> None:
    stub.reset()
    kafka3.kill(0)
    try:
        completions: list[str] = []
        for _ in range(24):
            status, reply = await until_answered(gateway, BODY)
            assert status == 200
            completions.append(reply["id"])
        recorded = {call.call_id for call in await gateway.calls() if call.outcome is CallOutcome.success}
        assert set(completions) <= recorded
    finally:
        await asyncio.to_thread(kafka3.restart, 0)


async def test_with_two_of_three_stopped_nothing_leaves_until_they_wake(gateway: Gateway, kafka3: LocalKafka, stub: Stub) -> None:
    stub.reset()
    await until_answered(gateway, BODY)
    kafka3.suspend(1)
    kafka3.suspend(2)
    try:
        whole = asyncio.create_task(gateway.json(CHAT, BODY))
        response = await gateway.post(CHAT, BODY | {"stream": True})
        arrived: list[bytes] = []

        async def read() -> None:
            async for line in lines(response):
                arrived.append(line)  # noqa: PERF401 - what came so far is looked at meanwhile

        stream = asyncio.create_task(read())
        await asyncio.sleep(HELD_S)
        assert len(stub.requests) >= 2
        assert not whole.done(), "a reply left before the log had it"
        assert not stream.done()
        said = b"".join(arrived)
        assert b" there" in said, "what comes before the finish reason is not held"
        assert b'"finish_reason":"stop"' not in said, "a finish reason left before the log had it"
        assert b"[DONE]" not in said
        # By now it is known that the log is unavailable: new calls are refused before anything is generated.
        asked = len(stub.requests)
        status, reply = await gateway.json(CHAT, BODY)
        assert (status, reply["error"]["code"], len(stub.requests)) == (503, "log_unavailable", asked)
        status, report = await gateway.get("/readyz")
        assert (status, "has not acknowledged" in report["log"]["problem"]) == (503, True)
    finally:
        kafka3.resume(1)
        kafka3.resume(2)
    status, reply = await asyncio.wait_for(whole, 60)
    await asyncio.wait_for(stream, 60)
    assert status == 200
    assert b'"finish_reason":"stop"' in b"".join(arrived)
    assert arrived[-1] == b"data: [DONE]"
    assert reply["id"] in {call.call_id for call in await gateway.calls()}
    assert len(await gateway.calls(response.headers[ROLLOUT])) == 1
    status, _ = await until_answered(gateway, BODY)
    assert status == 200
