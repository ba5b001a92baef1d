"""Every model API through a real gateway and a real Kafka: what the agent gets, what the log gets,
and errors in each API's own shape.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio

from fulgurite.enums import CallOutcome
from fulgurite.ids import parse_completion
from fulgurite.tokens import unpack_ids, unpack_logprobs
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import ADMIN, PLAIN, Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import PROMPT_IDS, Stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

ROLLOUT = "x-fulgurite-rollout-id"
LIMIT = 20_000
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "policy", "messages": MESSAGES},
    "/v1/completions": {"model": "policy", "prompt": "hi"},
    "/v1/responses": {"model": "policy", "input": "hi"},
    "/v1/messages": {"model": "policy", "messages": MESSAGES, "max_tokens": 16},
    "/v1/embeddings": {"model": "policy", "input": "hi"},
    "/v1/messages/count_tokens": {"model": "policy", "messages": MESSAGES},
}
PREFIXES = {"/v1/completions": "cmpl-", "/v1/responses": "resp_", "/v1/messages": "msg_"}
APIS = {"/v1/completions": "completions", "/v1/responses": "responses", "/v1/messages": "messages"}
generating = pytest.mark.parametrize("path", list(PREFIXES))
streaming = pytest.mark.parametrize("stream", [False, True])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    kafka: LocalKafka, stub: Stub, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Gateway]:
    settings = kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")
    upstreams = {
        "gpt": {
            "base_url": stub.url,
            "kind": "openai",
            "model": "gpt-5",
            "api_key": "sk-upstream-secret",
        }
    }
    async with running_gateway(
        settings,
        stub.url,
        tmp_path_factory.mktemp("gateway"),
        FULGURITE_UPSTREAMS=json.dumps(upstreams),
        FULGURITE_MAX_BODY_BYTES=str(LIMIT),
    ) as running:
        yield running


def message_of(path: str, reply: dict[str, Any]) -> str:
    """The words of an error, if it has the API's own shape."""
    if "/messages" in path:
        assert reply["type"] == "error"
        assert set(reply["error"]) == {"type", "message"}
    else:
        assert set(reply["error"]) == {"message", "type", "param", "code"}
    return reply["error"]["message"]


def ids_in(text: str) -> set[str]:
    """Completion ids that a stream's events bear."""
    found: set[str] = set()
    for line in text.splitlines():
        if line.startswith("data: {"):
            data = json.loads(line[6:])
            found |= {
                holder["id"]
                for holder in (data, data.get("response", {}), data.get("message", {}))
                if "id" in holder
            }
    return found


@generating
@streaming
async def test_the_agent_gets_its_api_and_the_log_gets_the_tokens(
    gateway: Gateway, stub: Stub, path: str, stream: bool
) -> None:
    stub.reset()
    async with gateway.post(path, BODIES[path] | {"stream": stream}) as response:
        assert response.status == 200
        text = await response.text()
        rollout = response.headers[ROLLOUT]
        assert response.headers["x-fulgurite-version"] == "policy@1.7"
    ids = ids_in(text) if stream else {json.loads(text)["id"]}
    assert len(ids) == 1
    seen = ids.pop()
    assert seen.startswith(PREFIXES[path])
    assert "fulgurite" not in text
    assert "token_ids" not in text
    call = await gateway.call(rollout)
    assert parse_completion(seen).completion_id == call.call_id
    assert (call.api, call.outcome, call.stream) == (APIS[path], CallOutcome.success, stream)
    assert unpack_ids(call.prompt_token_ids or b"").tolist() == PROMPT_IDS
    [choice] = call.choices
    assert unpack_ids(choice.token_ids or b"").tolist() == [10, 11, 12]
    assert unpack_logprobs(choice.logprobs or b"").tolist() == [-0.5, -1.0, -1.5]
    assert "Hello there!" in (choice.message or "")
    assert (choice.finish_reason, call.prompt_tokens, call.completion_tokens) == ("stop", 3, 3)
    assert (call.version_first, call.version_last) == ("policy@1.7", "policy@1.8")


@generating
@streaming
async def test_an_upstream_that_is_no_vllm_is_sent_nothing_extra(
    gateway: Gateway, stub: Stub, path: str, stream: bool
) -> None:
    stub.reset(vllm=False)
    body = BODIES[path] | {"model": "gpt", "stream": stream}
    async with gateway.post(path, body) as response:
        assert response.status == 200
        await response.read()
        rollout = response.headers[ROLLOUT]
    assert stub.requests == [body | {"model": "gpt-5"}]
    assert "x-fulgurite-tokens" not in stub.headers[0]
    [choice] = (await gateway.call(rollout)).choices
    assert (choice.token_ids, choice.logprobs) == (None, None)


@generating
async def test_a_reward_takes_whatever_id_the_agent_saw(
    gateway: Gateway, stub: Stub, path: str
) -> None:
    stub.reset()
    group = await gateway.declare(n=1)
    rollout = group["rollouts"][0]
    status, reply = await gateway.json(path, BODIES[path], rollout["api_key"])
    assert status == 200
    status, paid = await gateway.json(
        "/v1/rewards",
        {"completion_id": reply["id"], "name": "reward", "value": 1.0},
        rollout["reward_key"],
    )
    assert status == 201, paid
    [reward] = await gateway.rewards(group["group_id"])
    assert reward.call_id == (await gateway.call(rollout["rollout_id"])).call_id


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/messages/count_tokens"])
async def test_what_generates_nothing_is_recorded_without_choices(
    gateway: Gateway, stub: Stub, path: str
) -> None:
    stub.reset()
    async with gateway.post("/rollouts/my-session" + path, BODIES[path]) as response:
        assert response.status == 200
        reply = await response.json()
        rollout = response.headers[ROLLOUT]
    assert reply.get("data", [{}])[0].get("embedding", [0.25, -0.5]) == [0.25, -0.5]
    assert reply.get("input_tokens", 3) == 3
    api = {"/v1/embeddings": "embeddings"}.get(path, "messages.count_tokens")
    [call] = [call for call in await gateway.calls(rollout) if call.api == api]
    assert (call.outcome, call.choices) == (CallOutcome.success, ())
    assert "0.25" not in (call.response or "")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_a_client_gone_mid_stream_leaves_its_tokens(
    gateway: Gateway, stub: Stub, path: str
) -> None:
    stub.reset(gates=True)
    stub.release(2)
    async with gateway.post(path, BODIES[path] | {"stream": True}) as response:
        rollout = response.headers[ROLLOUT]
        for _ in range(3):
            await response.content.readuntil(b"\n\n")
        response.close()
    await asyncio.wait_for(stub.cancelled.wait(), 10)
    call = await gateway.call(rollout)
    assert call.outcome is CallOutcome.client_disconnected
    [choice] = call.choices
    assert unpack_ids(choice.token_ids or b"").tolist() == [10]
    assert unpack_ids(call.prompt_token_ids or b"").tolist() == PROMPT_IDS
    assert "Hello" in (choice.message or "")


@generating
@pytest.mark.parametrize("script", [{"break_after": 2}, {"error_after": 2}])
async def test_a_stream_that_breaks_off_ends_with_an_error_of_its_api(
    gateway: Gateway, stub: Stub, path: str, script: dict[str, Any]
) -> None:
    stub.reset(**script)
    async with gateway.post(path, BODIES[path] | {"stream": True}) as response:
        assert response.status == 200
        text = await response.text()
        rollout = response.headers[ROLLOUT]
    last = text.strip().split("\n\n")[-1].split("\n")
    error = json.loads(last[-1].removeprefix("data: "))
    assert "engine died" in json.dumps(error) or "broke off" in json.dumps(error)
    assert path == "/v1/completions" or (last[0], error["type"]) == ("event: error", "error")
    assert all(
        marker not in text
        for marker in (
            "[DONE]",
            "message_stop",
            "response.completed",
            '"finish_reason":"stop"',
            ".done",
        )
    )
    call = await gateway.call(rollout)
    assert call.outcome is CallOutcome.upstream_error
    assert call.choices[0].finish_reason is None
    assert unpack_ids(call.choices[0].token_ids or b"").tolist()[:1] == [10]


@pytest.mark.parametrize("path", list(BODIES))
async def test_what_makes_no_sense_is_refused_in_the_apis_own_shape(
    gateway: Gateway, stub: Stub, path: str
) -> None:
    stub.reset()
    needed = next(name for name in ("messages", "input", "prompt") if name in BODIES[path])
    for body, status, says in (
        (b'{"model": ', 400, "not valid JSON"),
        (json.dumps(BODIES[path] | {"model": 5}).encode(), 400, "`model` must be a string"),
        (json.dumps(BODIES[path] | {needed: 5}).encode(), 400, f"`{needed}` must be"),
        (
            json.dumps(BODIES[path] | {"stream": "yes"}).encode(),
            400,
            "`stream` must be true or false",
        ),
        (
            json.dumps(BODIES[path] | {"model": "nobody"}).encode(),
            404,
            "This gateway serves: gpt, policy",
        ),
        (json.dumps(BODIES[path] | {"more": "x" * LIMIT}).encode(), 413, "over the limit"),
    ):
        async with gateway.post(path, body) as response:
            assert response.status == status
            assert says in message_of(path, await response.json())
            rollout = response.headers[ROLLOUT]
        call = await gateway.call(rollout)
        assert (call.outcome, call.status_code) == (CallOutcome.refused, status)
    status, reply = await gateway.json(path, BODIES[path], "nobody")
    assert (status, "Unknown API key" in message_of(path, reply)) == (401, True)
    assert stub.requests == []


@pytest.mark.parametrize("path", list(BODIES))
@pytest.mark.parametrize(
    ("said", "status"),
    [(400, 400), (404, 404), (422, 422), (429, 429), (501, 501), (401, 502), (500, 502)],
)
async def test_what_an_upstream_refuses_comes_back_with_its_status_and_text(
    gateway: Gateway, stub: Stub, path: str, said: int, status: int
) -> None:
    stub.reset(status=said, error="these very words")
    got, reply = await gateway.json(path, BODIES[path])
    assert (got, "these very words" in message_of(path, reply)) == (status, True)


async def test_anthropics_clients_send_their_key_in_a_header_of_its_own(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset()
    headers = {
        "x-api-key": PLAIN,
        "anthropic-version": "2023-06-01",
        "content-type": "application/json",
    }
    async with gateway.client.post(
        gateway.url + "/v1/messages", json=BODIES["/v1/messages"], headers=headers
    ) as response:
        assert response.status == 200
        assert (await response.json())["content"] == [{"type": "text", "text": "Hello there!"}]
    assert PLAIN not in json.dumps(stub.headers)
    async with gateway.client.get(gateway.url + "/v1/models", headers=headers) as response:
        assert {model["id"] for model in (await response.json())["data"]} == {"policy", "gpt"}
    async with gateway.client.get(gateway.url + "/v1/messages", headers=headers) as response:
        assert response.status == 405
        message_of("/v1/messages", await response.json())


async def test_models_and_what_is_not_kept(gateway: Gateway) -> None:
    status, model = await gateway.get("/rollouts/x/v1/models/policy")
    assert (status, model["id"], model["object"]) == (200, "policy", "model")
    status, reply = await gateway.get("/v1/models/nobody/else")
    assert (status, reply["error"]["code"]) == (404, "model_not_found")
    status, reply = await gateway.get("/v1/responses/resp_1")
    assert (status, reply["error"]["code"]) == (404, "previous_response_not_found")
    status, reply = await gateway.json("/v1/responses/resp_1/cancel", {}, ADMIN)
    assert (status, reply["error"]["code"]) == (404, "not_supported")
