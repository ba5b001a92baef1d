"""Silence: of an upstream, of the log, of a client that reads nothing."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from fulgurite.enums import CallOutcome
from fulgurite.events import LlmCall
from fulgurite.failures import FailureKind
from services.gateway.dialects.anthropic_errors import PING
from services.gateway.dialects.openai_errors import COMMENT
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import PLAIN, Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

HELLO = [{"role": "user", "content": "hi"}]
STREAMS: dict[str, tuple[dict[str, Any], bytes]] = {
    "/v1/chat/completions": ({"messages": HELLO}, COMMENT),
    "/v1/completions": ({"prompt": "hi"}, COMMENT),
    "/v1/messages": ({"messages": HELLO, "max_tokens": 16}, PING),
    "/v1/responses": ({"input": "hi"}, COMMENT),
}
"""Each API's request, and what its clients skip."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    kafka: LocalKafka, stub: Stub, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Gateway]:
    settings = kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")
    env: dict[str, Any] = {
        "FULGURITE_CLIENT_WRITE_TIMEOUT_S": "1",
        "FULGURITE_BACKEND_CONCURRENCY": "1",
    }
    async with running_gateway(
        settings, stub.url, tmp_path_factory.mktemp("gateway"), **env
    ) as running:
        yield running


class Reader:
    """A stream as it arrives."""

    def __init__(self, response: Any) -> None:
        self.status: int = response.status
        self.rollout: str = response.headers["x-fulgurite-rollout-id"]
        self.body = b""
        self._content = response.content

    async def until(self, said: bytes, count: int = 1) -> None:
        """Read until that has come so often."""
        while self.body.count(said) < count:
            data = await self._content.readany()
            assert data, f"the stream ended before {said!r}: {self.body!r}"
            self.body += data

    async def rest(self) -> bytes:
        """All of it."""
        self.body += await self._content.read()
        return self.body


@asynccontextmanager
async def reading(
    gateway: Gateway, path: str, keep_alive: str = "0.1", **fields: Any
) -> AsyncGenerator[Reader]:
    body = {"model": "policy", "stream": True, **STREAMS[path][0], **fields}
    async with gateway.post(
        path,
        body,
        PLAIN,
        x_fulgurite_keep_alive=keep_alive,
        x_fulgurite_rollout=f"r-{uuid.uuid4().hex}",
    ) as response:
        yield Reader(response)


def text_of(call: LlmCall) -> str:
    return "".join(choice.message or "" for choice in call.choices) + (call.response or "")


@pytest.mark.parametrize("path", STREAMS)
async def test_a_silent_upstream_is_covered_and_nothing_of_it_recorded(
    gateway: Gateway, stub: Stub, path: str
) -> None:
    beat = STREAMS[path][1]
    stub.reset()
    async with reading(gateway, path, "0") as plain:
        expected = await plain.rest()
    assert beat not in expected
    stub.reset(waits=True, gates=True)
    async with reading(gateway, path) as reader:
        assert reader.status == 200
        await reader.until(beat, 2)
        assert reader.body.replace(beat, b"") == b"", "the upstream has said nothing yet"
        while b"Hello" not in reader.body:
            stub.release()
            await reader.until(beat, reader.body.count(beat) + 2)
        stub.release(100)
        said = await reader.rest()
    assert said.endswith(expected[-20:]), "nothing follows the end"
    assert said.replace(beat, b"").count(b"\n\n") == expected.count(b"\n\n")
    call = await gateway.call(reader.rollout)
    assert call.outcome is CallOutcome.success
    assert "Hello there!" in text_of(call)
    assert "keep-alive" not in text_of(call)
    assert "ping" not in text_of(call)


async def test_an_error_after_a_kept_silence_is_an_event(gateway: Gateway, stub: Stub) -> None:
    stub.reset(waits=True, status=500)
    async with reading(gateway, "/v1/messages") as reader:
        await reader.until(PING)
        stub.release()
        said = await reader.rest()
    assert reader.status == 200
    assert said.replace(PING, b"").startswith(b"event: error\n")
    call = await gateway.call(reader.rollout)
    assert (call.outcome, call.failure) == (CallOutcome.upstream_error, FailureKind.upstream_error)


async def test_an_error_before_the_first_silence_is_a_reply(gateway: Gateway, stub: Stub) -> None:
    stub.reset(status=500)
    async with reading(gateway, "/v1/chat/completions", "60") as reader:
        await reader.rest()
    assert reader.status >= 500


async def test_a_client_that_leaves_in_a_kept_silence_frees_its_place(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset(waits=True)
    async with reading(gateway, "/v1/chat/completions") as reader:
        await reader.until(COMMENT)
    await asyncio.wait_for(stub.cancelled.wait(), 20)
    assert (await gateway.call(reader.rollout)).outcome is CallOutcome.client_disconnected
    stub.reset()
    assert (await gateway.json("/v1/chat/completions", {"model": "policy", "messages": HELLO}))[
        0
    ] == 200


async def test_a_wrong_header_is_refused(gateway: Gateway) -> None:
    async with reading(gateway, "/v1/chat/completions", "often") as reader:
        said = await reader.rest()
    assert reader.status == 400
    assert b"x-fulgurite-keep-alive" in said
    assert (await gateway.call(reader.rollout)).outcome is CallOutcome.refused


async def test_the_end_that_waits_for_the_log_is_waited_for_aloud(
    gateway: Gateway, stub: Stub, kafka: LocalKafka
) -> None:
    stub.reset()
    kafka.suspend(0)
    try:
        async with reading(gateway, "/v1/chat/completions") as reader:
            await reader.until(b"there")
            await reader.until(COMMENT, reader.body.count(COMMENT) + 2)
            assert b"[DONE]" not in reader.body
            kafka.resume(0)
            said = await reader.rest()
    finally:
        kafka.resume(0)
    assert said.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_reads_nothing_loses_its_place(gateway: Gateway, stub: Stub) -> None:
    word = "x" * 100_000
    stub.reset(words=[word] * 400)
    async with reading(gateway, "/v1/chat/completions", "0") as reader:
        call = await gateway.call(reader.rollout, 60)
    assert (call.outcome, call.failure) == (
        CallOutcome.client_disconnected,
        FailureKind.client_disconnected,
    )
    assert 0 < len(call.choices[0].token_ids or b"") < 400 * 4
    assert stub.cancelled.is_set()
    stub.reset()
    assert (await gateway.json("/v1/chat/completions", {"model": "policy", "messages": HELLO}))[
        0
    ] == 200
