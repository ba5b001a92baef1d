"""Calls through a real gateway and a real Kafka: what the agent gets, what the log gets, and in
which order.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fulgurite.enums import CallOutcome, Identity, LogprobsMode, Mode, StatusKind
from fulgurite.failures import FailureKind
from fulgurite.ids import external_group, parse_completion
from fulgurite.tokens import prompt_hash, unpack_ids, unpack_logprobs
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import ADMIN, PLAIN, Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import PROMPT_IDS, Stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}
ROLLOUT = "x-fulgurite-rollout-id"


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
    aliases = "policy=policy,sql-writer=policy"
    folder: Path = tmp_path_factory.mktemp("gateway")
    async with running_gateway(
        settings,
        stub.url,
        folder,
        FULGURITE_ALIASES=aliases,
        FULGURITE_UPSTREAMS=json.dumps(upstreams),
        FULGURITE_HEARTBEAT_S="0.5",
    ) as running:
        yield running


def data_of(event: bytes) -> dict[str, Any]:
    return json.loads(event.removeprefix(b"data: "))


async def events_of(response: Any) -> list[bytes]:
    return [event for event in (await response.read()).split(b"\n\n") if event]


async def test_a_whole_answer(gateway: Gateway, stub: Stub) -> None:
    stub.reset()
    async with gateway.post(CHAT, BODY | {"temperature": 0.7}) as response:
        assert response.status == 200
        reply = await response.json()
        headers = response.headers
    call = await gateway.call(headers[ROLLOUT])
    assert reply["id"] == call.call_id
    assert parse_completion(reply["id"]).rollout.rollout_id == headers[ROLLOUT] == call.rollout_id
    assert headers["x-fulgurite-version"] == "policy@1.7"
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there!"},
            "finish_reason": "stop",
            "logprobs": None,
            "stop_reason": None,
        }
    ]
    assert "prompt_token_ids" not in reply
    assert (call.version_first, call.version_last, call.policy, call.backend) == (
        "policy@1.7",
        "policy@1.8",
        "policy",
        "vllm",
    )
    assert (call.outcome, call.status_code, call.failure, call.mode, call.identity) == (
        CallOutcome.success,
        200,
        None,
        Mode.live,
        Identity.none,
    )
    assert (call.prompt_tokens, call.completion_tokens, call.logprobs_mode) == (
        3,
        3,
        LogprobsMode.processed,
    )
    assert unpack_ids(call.prompt_token_ids or b"").tolist() == PROMPT_IDS
    assert call.prompt_hash == prompt_hash(call.prompt_token_ids or b"")
    assert unpack_ids(call.choices[0].token_ids or b"").tolist() == [10, 11, 12]
    assert unpack_logprobs(call.choices[0].logprobs or b"").tolist() == [-0.5, -1.0, -1.5]
    assert call.sampling.temperature == 0.7
    assert json.loads(call.request or "") == BODY | {"temperature": 0.7}
    assert call.started_at <= (call.first_token_at or 0) <= call.finished_at


async def test_a_stream_is_passed_through_as_it_comes(gateway: Gateway, stub: Stub) -> None:
    """The upstream withholds chunk 2 until the client has confirmed chunk 1, and so on: buffering
    would wait for ever.
    """
    stub.reset(gates=True, words=["a", "b", "c"])
    async with gateway.post(CHAT, BODY | {"stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        seen: list[str] = []
        for number in range(3):
            chunk = data_of((await response.content.readuntil(b"\n\n")).strip())
            seen.append(chunk["choices"][0]["delta"].get("content"))
            assert stub.chunks_sent == number + 1
            stub.release()
        stub.release(10)
        rest = await events_of(response)
        rollout = response.headers[ROLLOUT]
    assert seen == ["", "a", "b"]
    assert data_of(rest[0])["choices"][0]["finish_reason"] == "stop"
    assert rest[1:] == [b"data: [DONE]"]
    call = await gateway.call(rollout)
    assert call.stream
    assert call.choices[0].message == '{"role":"assistant","content":"abc"}'
    assert unpack_ids(call.choices[0].token_ids or b"").tolist() == [10, 11, 12]
    assert len(call.choices[0].logprobs or b"") == 12
    assert (call.version_first, call.version_last) == ("policy@1.7", "policy@1.8")
    assert (call.prompt_tokens, call.completion_tokens) == (3, 3)


async def test_a_stream_holds_what_the_agent_asked_for_and_nothing_else(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset()
    async with gateway.post(CHAT, BODY | {"stream": True}) as response:
        text = await response.text()
    assert all(
        word not in text for word in ("token_ids", "usage", '"logprob"', "fulgurite-version")
    )
    wanted = {
        "stream": True,
        "logprobs": True,
        "top_logprobs": 2,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
    }
    async with gateway.post(CHAT, BODY | wanted) as response:
        text = await response.text()
    assert all(
        word in text
        for word in ("prompt_token_ids", '"token_ids":[10]', '"usage"', '"logprob":-0.5')
    )
    assert stub.requests[-1]["top_logprobs"] == 2


async def test_several_choices(gateway: Gateway, stub: Stub) -> None:
    stub.reset()
    async with gateway.post(CHAT, BODY | {"n": 2, "stream": True}) as response:
        rollout = response.headers[ROLLOUT]
        assert len([e for e in await events_of(response) if b'"finish_reason":"stop"' in e]) == 2
    call = await gateway.call(rollout)
    assert [choice.index for choice in call.choices] == [0, 1]
    assert {choice.message for choice in call.choices} == {
        '{"role":"assistant","content":"Hello there!"}'
    }
    status, reply = await gateway.json(CHAT, BODY | {"n": 2})
    assert (status, len(reply["choices"])) == (200, 2)


async def test_an_upstream_that_is_no_vllm_gives_null_tokens(gateway: Gateway, stub: Stub) -> None:
    for stream in (False, True):
        stub.reset(vllm=False)
        async with gateway.post(CHAT, BODY | {"model": "gpt", "stream": stream}) as response:
            assert response.status == 200
            rollout = response.headers[ROLLOUT]
            assert "x-fulgurite-version" not in response.headers
            await response.read()
        assert stub.requests == [BODY | {"model": "gpt-5", "stream": stream}]
        assert stub.headers[0]["Authorization"] == "Bearer sk-upstream-secret"
        call = await gateway.call(rollout)
        assert (call.outcome, call.policy, call.backend, call.alias) == (
            CallOutcome.success,
            None,
            "gpt",
            "gpt",
        )
        assert (call.version_first, call.prompt_token_ids, call.prompt_hash) == (None, None, None)
        assert (call.choices[0].token_ids, call.choices[0].logprobs, call.logprobs_mode) == (
            None,
            None,
            LogprobsMode.none,
        )


async def test_tool_calls_that_do_not_parse_and_cut_answers_have_their_kind(
    gateway: Gateway, stub: Stub
) -> None:
    for script, kind in (
        (
            {"tool_arguments": '{"a": 1', "finish_reason": "tool_calls"},
            FailureKind.tool_parse_error,
        ),
        ({"tool_arguments": '{"a": 1}', "finish_reason": "tool_calls"}, None),
        ({"finish_reason": "length"}, FailureKind.truncated),
    ):
        stub.reset(**script)
        async with gateway.post(CHAT, BODY) as response:
            assert response.status == 200
            rollout = response.headers[ROLLOUT]
        call = await gateway.call(rollout)
        assert (call.outcome, call.failure) == (CallOutcome.success, kind)


async def test_a_scoped_key_is_the_rollout(gateway: Gateway, stub: Stub) -> None:
    stub.reset()
    group = await gateway.declare(n=2, mode="val", agent="solver")
    second = group["rollouts"][1]
    async with gateway.post(CHAT, BODY, second["api_key"]) as response:
        assert response.headers[ROLLOUT] == second["rollout_id"]
    call = await gateway.call(second["rollout_id"])
    assert (call.group_id, call.attempt, call.mode, call.agent) == (
        group["group_id"],
        0,
        Mode.val,
        "solver",
    )
    assert call.identity is Identity.scoped_key
    assert second["api_key"] not in (call.request or "")


async def test_names_in_path_header_and_metadata_are_sessions_of_their_owner(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset()
    seen: set[str] = set()
    for path, headers, body, identity in (
        ("/rollouts/my-chat/v1/chat/completions", {}, BODY, Identity.path),
        (
            CHAT,
            {"x_fulgurite_rollout": "my-chat", "x_fulgurite_agent": "critic"},
            BODY,
            Identity.header,
        ),
        (CHAT, {}, BODY | {"metadata": {"session_id": "my-chat"}}, Identity.header),
    ):
        async with gateway.post(path, body, **headers) as response:
            assert response.status == 200
            rollout, completion = response.headers[ROLLOUT], (await response.json())["id"]
        [call] = [call for call in await gateway.calls(rollout) if call.call_id == completion]
        assert (call.identity, call.mode) == (identity, Mode.live)
        assert call.agent == ("critic" if headers else "")
        seen.add(rollout)
    assert len(seen) == 1
    async with gateway.post("/rollouts/my-chat/v1/chat/completions", BODY, ADMIN) as response:
        assert response.headers[ROLLOUT] not in seen
    assert external_group("a", "x", b"s") != external_group("b", "x", b"s")


async def test_the_admin_key_may_name_a_declared_rollout_in_the_path(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset()
    group = await gateway.declare(n=1, mode="train")
    rollout = group["rollouts"][0]["rollout_id"]
    async with gateway.post(f"/rollouts/{rollout}/v1/chat/completions", BODY, ADMIN) as response:
        assert response.status == 200
    call = await gateway.call(rollout)
    assert (call.mode, call.identity, call.group_id) == (
        Mode.train,
        Identity.path,
        group["group_id"],
    )


async def test_the_alias_is_the_role_where_it_is_not_the_policy(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset()
    async with gateway.post(CHAT, BODY | {"model": "sql-writer"}) as response:
        reply = await response.json()
        rollout = response.headers[ROLLOUT]
    call = await gateway.call(rollout)
    assert (call.agent, call.alias, call.policy, reply["model"]) == (
        "sql-writer",
        "sql-writer",
        "policy",
        "sql-writer",
    )
    assert stub.requests[0]["model"] == "policy"


async def test_calls_in_flight_say_that_they_live(gateway: Gateway, stub: Stub) -> None:
    stub.reset(gates=True)
    group = await gateway.declare(n=1)
    rollout = group["rollouts"][0]
    async with gateway.post(CHAT, BODY | {"stream": True}, rollout["api_key"]) as response:
        beats: list[str | None] = []
        while len(beats) < 2:
            beats = [
                s.call_id
                for s in await gateway.statuses(group["group_id"])
                if s.kind is StatusKind.heartbeat
            ]
        stub.release(10)
        await response.read()
    assert set(beats) == {(await gateway.call(rollout["rollout_id"])).call_id}


async def test_models_lists_the_aliases(gateway: Gateway) -> None:
    status, models = await gateway.get("/v1/models")
    assert status == 200
    assert {model["id"] for model in models["data"]} == {"policy", "sql-writer", "gpt"}


async def test_no_secret_reaches_log_or_topic(gateway: Gateway, stub: Stub) -> None:
    stub.reset()
    group = await gateway.declare(n=1)
    key = group["rollouts"][0]["api_key"]
    body = BODY | {"messages": [{"role": "user", "content": f"my key is {key}"}]}
    await gateway.json(CHAT, body, key)
    call = await gateway.call(group["rollouts"][0]["rollout_id"])
    assert "[redacted]" in (call.request or "")
    logged = gateway.log.read_text()
    for secret in (key, ADMIN, PLAIN, "sk-upstream-secret", "0123456789abcdef0123456789abcdef"):
        assert secret not in logged
        assert secret not in str(call)
