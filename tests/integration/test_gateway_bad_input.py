"""What is wrong with a request, an upstream or a client: a clear error in OpenAI's shape, and a
recorded event; nothing is lost.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import uuid
import zlib
from collections.abc import AsyncGenerator
from typing import Any

import cramjam
import pytest
import pytest_asyncio

from fulgurite.enums import CallOutcome, Mode
from fulgurite.failures import FailureKind
from fulgurite.ids import mint_group, rollout_of
from fulgurite.tokens import unpack_ids
from services.gateway.identity.claims import Claims
from services.gateway.identity.keys import AGENT_SCOPES, KeyRing
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.ports import free_port
from tests.integration.gateway_process import SIGNING, Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}
ROLLOUT = "x-fulgurite-rollout-id"
LIMIT = 20_000
RING = KeyRing.parse(SIGNING)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    kafka: LocalKafka, stub: Stub, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Gateway]:
    settings = kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")
    upstreams = {"down": {"base_url": f"http://127.0.0.1:{free_port()}"}}
    async with running_gateway(
        settings,
        stub.url,
        tmp_path_factory.mktemp("gateway"),
        FULGURITE_UPSTREAMS=json.dumps(upstreams),
        FULGURITE_UPSTREAM_TIMEOUT_S="1.5",
        FULGURITE_MAX_BODY_BYTES=str(LIMIT),
        FULGURITE_MAX_REST_BODY_BYTES=str(LIMIT),
    ) as running:
        yield running


def shape(reply: dict[str, Any]) -> dict[str, Any]:
    """The error, if it is in OpenAI's shape."""
    assert set(reply) == {"error"}
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    assert len(reply["error"]["message"]) > 20
    return reply["error"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"model": ', 400, "not valid JSON"),
        (b"[1]", 400, "JSON object"),
        (b'{"model": 5, "messages": []}', 400, "`model` must be a string"),
        (b'{"model": "policy", "messages": "hi"}', 400, "`messages` must be a list"),
        (
            b'{"model": "policy", "messages": [], "stream": "yes"}',
            400,
            "`stream` must be true or false",
        ),
        (
            b'{"model":"policy","messages":[{"role":"user","content":"\xff"}]}',
            400,
            "not valid UTF-8",
        ),
        (
            b'{"model":"policy","messages":[{"role":"user","content":"\\ud83c"}]}',
            400,
            "half a character",
        ),
        (
            b'{"model":"policy","messages":' + b"[" * 200 + b"]" * 200 + b"}",
            400,
            "nested too deeply",
        ),
        (b'{"model":"policy","messages":' + b"[" * 5000 + b"}", 400, "nested too deeply"),
        (b'{"model":"' + b"m" * 300 + b'","messages":[]}', 400, "more than 256 characters"),
        (
            b'{"model":"policy","messages":[],"temperature":"hot"}',
            400,
            "`temperature` must be a finite number",
        ),
        (b'{"model":"policy","messages":[],"top_k":2147483648}', 400, "`top_k` must lie between"),
        (
            b'{"model":"policy","messages":[],"max_tokens":"4294967296"}',
            400,
            "`max_tokens` must lie between",
        ),
        (b'{"model": "nobody", "messages": []}', 404, "This gateway serves: down, policy"),
        (
            b'{"model": "policy", "messages": [{"content": "' + b"x" * LIMIT + b'"}]}',
            413,
            "over the limit",
        ),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_and_recorded(
    gateway: Gateway, stub: Stub, body: bytes, status: int, says: str
) -> None:
    stub.reset()
    async with gateway.post(CHAT, body) as response:
        assert response.status == status
        assert says in shape(await response.json())["message"]
        rollout = response.headers[ROLLOUT]
    assert stub.requests == []
    call = await gateway.call(rollout)
    assert (call.outcome, call.status_code) == (CallOutcome.refused, status)
    assert says in (call.error or "")
    assert status == 413 or call.request == body.decode("utf-8", "replace")


async def test_a_body_without_a_length_is_bounded_too(gateway: Gateway, stub: Stub) -> None:
    async def pieces() -> AsyncGenerator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    stub.reset()
    for path in (CHAT, "/v1/rewards"):
        headers = {"authorization": "Bearer a-plain-key", "content-type": "application/json"}
        async with gateway.client.post(
            gateway.url + path, data=pieces(), headers=headers
        ) as response:
            assert response.status == 413
            shape(await response.json())


async def test_a_refused_call_is_recorded_in_part(gateway: Gateway, stub: Stub) -> None:
    stub.reset()
    body = {"model": "nobody", "messages": [{"role": "user", "content": "x" * 15_000}]}
    async with gateway.post(CHAT, body) as response:
        assert response.status == 404
        rollout = response.headers[ROLLOUT]
    call = await gateway.call(rollout)
    assert len(call.request or "") < 8300
    assert (call.request or "").startswith('{"model": "nobody"')
    assert call.claim_check is None


@pytest.mark.parametrize(
    ("encoding", "squeeze"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", cramjam.zstd.compress)],
)
async def test_a_compressed_body_is_read_and_recorded_inflated(
    gateway: Gateway, stub: Stub, encoding: str, squeeze: Any
) -> None:
    stub.reset()
    plain = json.dumps(BODY).encode()
    async with gateway.post(
        CHAT, bytes(squeeze(b"\xef\xbb\xbf" + plain)), content_encoding=encoding
    ) as response:
        assert response.status == 200
        rollout = response.headers[ROLLOUT]
    assert stub.requests[0]["messages"] == BODY["messages"]
    assert (await gateway.call(rollout)).request == plain.decode()
    async with gateway.post(
        CHAT, bytes(squeeze(b" " * (LIMIT + 1))), content_encoding=encoding
    ) as response:
        assert response.status == 413
    assert len(stub.requests) == 1


async def test_another_encoding_is_refused_with_the_list_and_recorded(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset()
    async with gateway.post(CHAT, b"\x1b", content_encoding="br") as response:
        assert (response.status, response.headers["accept-encoding"]) == (
            415,
            "gzip, deflate, zstd",
        )
        shape(await response.json())
        rollout = response.headers[ROLLOUT]
    call = await gateway.call(rollout)
    assert (call.outcome, call.status_code, call.request) == (CallOutcome.refused, 415, None)


async def test_numbers_as_text_are_sent_and_recorded_as_numbers(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset()
    async with gateway.post(
        CHAT, BODY | {"temperature": "0", "top_k": "1", "max_tokens": "7", "n": "1"}
    ) as response:
        assert response.status == 200
        rollout = response.headers[ROLLOUT]
    sent = stub.requests[0]
    assert (sent["temperature"], sent["top_k"], sent["max_tokens"], sent["n"]) == (0.0, 1, 7, 1)
    sampling = (await gateway.call(rollout)).sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0.0, 1, 7)


async def test_keys_that_do_not_fit(gateway: Gateway, stub: Stub) -> None:
    stub.reset()
    group = await gateway.declare(n=2)
    first, second = group["rollouts"]
    foreign = KeyRing.parse("k1:another-deployment-0").mint(
        Claims("ro_x", 0, "gr_x", "", Mode.train, AGENT_SCOPES, 1 << 50)
    )
    for key, status, says in (
        ("", 401, "No API key"),
        ("nobody", 401, "Unknown API key"),
        (foreign, 401, "signature is wrong"),
        (first["reward_key"], 403, "for rewards only"),
    ):
        answer, reply = await gateway.json(CHAT, BODY, key)
        assert (answer, says in shape(reply)["message"]) == (status, True)
    path = f"/rollouts/{second['rollout_id']}/v1/chat/completions"
    answer, reply = await gateway.json(path, BODY, first["api_key"])
    assert (answer, shape(reply)["code"]) == (403, "foreign_key")
    assert stub.requests == []


async def test_an_expired_key_is_refused_and_its_call_recorded(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset()
    group = mint_group(int(time.time() * 1000), b"0123456789")
    rollout = rollout_of(group, 0, RING.signing_secret)
    expired = RING.mint(
        Claims(rollout, 1, group, "", Mode.train, AGENT_SCOPES, int(time.time() * 1000) - 120_000)
    )
    status, reply = await gateway.json(CHAT, BODY, expired)
    assert (status, shape(reply)["code"]) == (401, "expired_api_key")
    call = await gateway.call(rollout)
    assert (call.outcome, call.failure, call.attempt, call.mode) == (
        CallOutcome.refused,
        FailureKind.agent_timeout,
        1,
        Mode.train,
    )


async def test_a_rollout_id_nobody_gave_out(gateway: Gateway, stub: Stub) -> None:
    stub.reset()
    forged = rollout_of(mint_group(1, b"0123456789"), 0, b"another secret")
    for name in (forged, "ro_nonsense"):
        async with gateway.post(f"/rollouts/{name}/v1/chat/completions", BODY) as response:
            assert (response.status, shape(await response.json())["code"]) == (
                404,
                "unknown_rollout",
            )
            own = response.headers[ROLLOUT]
        assert (await gateway.call(own)).outcome is CallOutcome.refused
    assert stub.requests == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("upstream", "error", "status", "kind", "code"),
    [
        (500, "it broke", 502, FailureKind.upstream_error, "upstream_error"),
        (429, "slow down", 429, FailureKind.rate_limited, "rate_limited"),
        (
            400,
            "This model's maximum context length is 2048 tokens.",
            400,
            FailureKind.context_overflow,
            "context_length_exceeded",
        ),
        (400, "temperature must be a number", 400, FailureKind.unknown, "upstream_rejected"),
        (401, "bad upstream key", 502, FailureKind.infrastructure, "upstream_error"),
    ],
)
async def test_an_upstreams_error_is_passed_on_and_recorded(
    gateway: Gateway,
    stub: Stub,
    stream: bool,
    upstream: int,
    error: str,
    status: int,
    kind: FailureKind,
    code: str,
) -> None:
    stub.reset(status=upstream, error=error)
    async with gateway.post(CHAT, BODY | {"stream": stream}) as response:
        assert response.status == status
        found = shape(await response.json())
        rollout = response.headers[ROLLOUT]
    assert (found["code"], error in found["message"]) == (code, True)
    call = await gateway.call(rollout)
    assert (call.outcome, call.failure, call.status_code) == (
        CallOutcome.upstream_error,
        kind,
        status,
    )
    assert error in (call.error or "")


async def test_an_upstream_that_is_down(gateway: Gateway) -> None:
    for stream in (False, True):
        async with gateway.post(CHAT, BODY | {"model": "down", "stream": stream}) as response:
            assert response.status == 502
            assert "cannot be reached" in shape(await response.json())["message"]
            rollout = response.headers[ROLLOUT]
        assert (await gateway.call(rollout)).failure is FailureKind.upstream_error


async def test_an_upstream_that_hangs(gateway: Gateway, stub: Stub) -> None:
    for stream in (False, True):
        stub.reset(hang=True)
        async with gateway.post(CHAT, BODY | {"stream": stream}) as response:
            assert response.status == 504
            assert "FULGURITE_UPSTREAM_TIMEOUT_S" in shape(await response.json())["message"]
            rollout = response.headers[ROLLOUT]
        call = await gateway.call(rollout)
        assert (call.outcome, call.failure) == (
            CallOutcome.upstream_timeout,
            FailureKind.upstream_timeout,
        )
        await asyncio.wait_for(stub.cancelled.wait(), 10)


@pytest.mark.parametrize("script", [{"break_after": 1}, {"error_after": 1}, {"gates": True}])
async def test_a_stream_that_breaks_off_ends_with_an_error_and_keeps_its_tokens(
    gateway: Gateway, stub: Stub, script: dict[str, Any]
) -> None:
    """The connection is cut, the engine reports an error, or falls silent: no finish reason, no
    [DONE], the tokens so far recorded.
    """
    stub.reset(**script)
    if script.get("gates"):
        stub.release(1)
    async with gateway.post(CHAT, BODY | {"stream": True}) as response:
        assert response.status == 200
        text = await response.text()
        rollout = response.headers[ROLLOUT]
    assert "[DONE]" not in text
    assert '"finish_reason":"stop"' not in text
    assert json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["message"]
    call = await gateway.call(rollout)
    assert call.outcome is (
        CallOutcome.upstream_timeout if script.get("gates") else CallOutcome.upstream_error
    )
    assert unpack_ids(call.choices[0].token_ids or b"").tolist() == [10]
    assert call.choices[0].finish_reason is None


async def test_a_client_gone_mid_stream_stops_the_upstream_and_is_recorded(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset(gates=True)
    stub.release(1)
    async with gateway.post(CHAT, BODY | {"stream": True}) as response:
        rollout = response.headers[ROLLOUT]
        for _ in range(2):
            await response.content.readuntil(b"\n\n")
        response.close()
    await asyncio.wait_for(stub.cancelled.wait(), 10)
    call = await gateway.call(rollout)
    assert (call.outcome, call.failure, call.status_code) == (
        CallOutcome.client_disconnected,
        FailureKind.client_disconnected,
        None,
    )
    assert unpack_ids(call.choices[0].token_ids or b"").tolist() == [10]


async def test_a_client_gone_before_the_answer_stops_the_upstream_and_is_recorded(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset(hang=True)
    group = await gateway.declare(n=1)
    rollout = group["rollouts"][0]
    task = asyncio.create_task(gateway.json(CHAT, BODY, rollout["api_key"]))
    await asyncio.wait_for(stub.asked.wait(), 10)
    task.cancel()
    await asyncio.wait_for(stub.cancelled.wait(), 10)
    call = await gateway.call(rollout["rollout_id"])
    assert (call.outcome, call.choices) == (CallOutcome.client_disconnected, ())


async def test_paths_and_methods_nobody_knows(gateway: Gateway) -> None:
    for method, path, status in (
        ("GET", "/v2/x", 404),
        ("GET", CHAT, 405),
        ("POST", "/v1/models", 405),
    ):
        async with gateway.client.request(method, gateway.url + path) as response:
            assert response.status == status
            shape(await response.json())
