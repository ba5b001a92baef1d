"""Every API of a real vLLM through the gateway: the tokens in the log are those that vLLM itself
reports for the same greedy request.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, NotFoundError

from fulgurite.enums import CallOutcome, LogprobsMode
from fulgurite.events import LlmCall
from fulgurite.tokens import unpack_ids, unpack_logprobs
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.vllm_local import LocalVllm
from tests.integration.gateway_process import PLAIN, Gateway, kafka_settings, running_gateway

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

ROLLOUT = "x-fulgurite-rollout-id"
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "abc"}]
GREEDY: dict[str, Any] = {"model": "policy", "temperature": 0}
TOOL_SCHEMA = {"type": "object", "properties": {"expression": {"type": "string"}}}
streaming = pytest.mark.parametrize("stream", [False, True])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    kafka: LocalKafka, vllm_tiny: LocalVllm, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Gateway]:
    settings = kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")
    async with running_gateway(
        settings, vllm_tiny.base_url, tmp_path_factory.mktemp("gateway")
    ) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected(
    gateway: Gateway, vllm_tiny: LocalVllm
) -> tuple[list[int], list[int], list[float]]:
    """Prompt ids, ids and log-probabilities of the greedy answer to MESSAGES, from vLLM's own chat
    completions.
    """
    body = GREEDY | {
        "messages": MESSAGES,
        "max_tokens": 8,
        "logprobs": True,
        "return_token_ids": True,
    }
    async with gateway.client.post(
        vllm_tiny.base_url + "/v1/chat/completions", json=body
    ) as response:
        reply = await response.json()
    choice = reply["choices"][0]
    return (
        reply["prompt_token_ids"],
        choice["token_ids"],
        [entry["logprob"] for entry in choice["logprobs"]["content"]],
    )


async def recorded(gateway: Gateway, path: str, body: dict[str, Any]) -> tuple[str, LlmCall]:
    """What the agent gets, and what the log gets."""
    async with gateway.post(path, body) as response:
        text = await response.text()
        assert response.status == 200, text
        rollout = response.headers[ROLLOUT]
    return text, await gateway.call(rollout)


def check(call: LlmCall, expected: tuple[list[int], list[int], list[float]]) -> None:
    prompt, ids, logprobs = expected
    [choice] = call.choices
    assert call.outcome is CallOutcome.success
    assert unpack_ids(call.prompt_token_ids or b"").tolist() == prompt
    assert unpack_ids(choice.token_ids or b"").tolist() == ids
    np.testing.assert_allclose(unpack_logprobs(choice.logprobs or b""), logprobs, atol=0.05)
    assert (call.prompt_tokens, call.completion_tokens) == (len(prompt), len(ids))
    assert call.logprobs_mode is LogprobsMode.processed
    assert (call.version_first or "").startswith("policy@")
    assert call.version_last == call.version_first
    assert choice.finish_reason == "length"


@streaming
@pytest.mark.parametrize("own", [{}, {"logprobs": True}])
async def test_chat(
    gateway: Gateway,
    expected: tuple[list[int], list[int], list[float]],
    stream: bool,
    own: dict[str, Any],
) -> None:
    """Packed by the plug-in, or in vLLM's own way because the agent asks for some of it itself."""
    body = GREEDY | {"messages": MESSAGES, "max_tokens": 8, "stream": stream} | own
    text, call = await recorded(gateway, "/v1/chat/completions", body)
    check(call, expected)
    assert ('"logprob":' in text) == bool(own)
    assert "token_ids" not in text
    assert "fulgurite" not in text


@streaming
async def test_messages(
    gateway: Gateway, expected: tuple[list[int], list[int], list[float]], stream: bool
) -> None:
    text, call = await recorded(
        gateway, "/v1/messages", GREEDY | {"messages": MESSAGES, "max_tokens": 8, "stream": stream}
    )
    check(call, expected)
    core = call.call_id.removeprefix("chatcmpl-")
    assert text.count(f'"id":"msg_{core}"') == 1
    assert "fulgurite" not in text
    assert "chatcmpl" not in text
    if not stream:
        reply = json.loads(text)
        assert (reply["type"], reply["model"], reply["stop_reason"]) == (
            "message",
            "policy",
            "max_tokens",
        )
        assert json.loads(call.choices[0].message or "") == {
            "role": "assistant",
            "content": reply["content"],
        }
    else:
        names = [line[7:] for line in text.splitlines() if line.startswith("event: ")]
        assert (names[0], names[-2:]) == ("message_start", ["message_delta", "message_stop"])


@streaming
async def test_responses(
    gateway: Gateway, expected: tuple[list[int], list[int], list[float]], stream: bool
) -> None:
    text, call = await recorded(
        gateway,
        "/v1/responses",
        GREEDY | {"input": MESSAGES, "max_output_tokens": 8, "stream": stream},
    )
    check(call, expected)
    core = call.call_id.removeprefix("chatcmpl-")
    assert text.count(f'"id":"resp_{core}"') == (3 if stream else 1)
    assert "fulgurite" not in text
    assert '"top_logprobs":null' in text, "what is asked of the engine on top must not show"


@streaming
async def test_completions(
    gateway: Gateway, expected: tuple[list[int], list[int], list[float]], stream: bool
) -> None:
    prompt, ids, _ = expected
    text, call = await recorded(
        gateway, "/v1/completions", GREEDY | {"prompt": prompt, "max_tokens": 8, "stream": stream}
    )
    check(call, expected)
    assert "token_ids" not in text
    assert call.completion_tokens == len(ids)


async def test_the_official_clients_read_it(gateway: Gateway) -> None:
    async with AsyncOpenAI(base_url=gateway.url + "/v1", api_key=PLAIN, max_retries=0) as client:
        answer = await client.responses.create(model="policy", input="abc", max_output_tokens=8)
        assert answer.id.startswith("resp_")
        seen = [
            event.type
            async for event in await client.responses.create(
                model="policy", input="abc", max_output_tokens=8, stream=True
            )
        ]
        assert (seen[0], seen[-1]) == ("response.created", "response.completed")
        completion = await client.completions.create(
            model="policy", prompt="abc", max_tokens=4, n=2, logprobs=1
        )
        assert [
            len(choice.logprobs.token_logprobs or ())
            for choice in completion.choices
            if choice.logprobs
        ] == [4, 4]
        assert [model.id async for model in client.models.list()] == ["policy"]
        assert (await client.models.retrieve("policy")).id == "policy"
        with pytest.raises(NotFoundError, match="not found"):
            await client.responses.create(
                model="policy", input="abc", previous_response_id="resp_nobodys"
            )


async def test_logprobs_that_the_agent_asked_for_itself_are_left_to_it(
    gateway: Gateway, expected: tuple[list[int], list[int], list[float]]
) -> None:
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    text, call = await recorded(
        gateway, "/v1/responses", GREEDY | asked | {"input": MESSAGES, "max_output_tokens": 8}
    )
    check(call, expected)
    logprobs = json.loads(text)["output"][0]["content"][0]["logprobs"]
    assert [len(entry["top_logprobs"]) for entry in logprobs] == [2] * len(expected[1])


async def test_a_response_builds_on_another_as_if_all_had_been_sent(gateway: Gateway) -> None:
    """vLLM itself keeps none."""
    asked: dict[str, Any] = GREEDY | {"max_output_tokens": 4}
    text, first = await recorded(gateway, "/v1/responses", asked | {"input": "abc"})
    call = {"type": "function_call", "call_id": "c1", "name": "calc", "arguments": '{"a": 1}'}
    result = {"type": "function_call_output", "call_id": "c1", "output": "11"}
    given: list[Any] = [call, result, {"role": "user", "content": "d"}]
    whole: list[Any] = [{"role": "user", "content": "abc"}, *json.loads(text)["output"], *given]
    _, expected = await recorded(gateway, "/v1/responses", asked | {"input": whole})
    for stream in (False, True):
        more = asked | {
            "input": given,
            "previous_response_id": json.loads(text)["id"],
            "stream": stream,
        }
        async with gateway.post("/v1/responses", more) as response:
            said = await response.text()
            assert (response.status, response.headers[ROLLOUT]) == (200, first.rollout_id), said
    built_on = [
        other for other in await gateway.calls(first.rollout_id) if other.call_id != first.call_id
    ]
    assert [other.prompt_token_ids for other in built_on] == [expected.prompt_token_ids] * 2
    assert [other.choices[0].token_ids for other in built_on] == [expected.choices[0].token_ids] * 2


async def test_tools_pass_through(gateway: Gateway) -> None:
    tool = {"type": "function", "name": "calc", "description": "d", "parameters": TOOL_SCHEMA}
    text, call = await recorded(
        gateway,
        "/v1/responses",
        {"model": "policy", "input": "abc", "tools": [tool], "max_output_tokens": 8},
    )
    assert json.loads(text)["tools"][0]["name"] == "calc"
    assert call.choices[0].token_ids
    tools = [{"name": "calc", "description": "d", "input_schema": TOOL_SCHEMA}]
    for stream in (False, True):
        body = {
            "model": "policy",
            "messages": MESSAGES,
            "tools": tools,
            "max_tokens": 8,
            "stream": stream,
        }
        _, call = await recorded(gateway, "/v1/messages", body)
        assert call.choices[0].token_ids


async def test_counting_and_what_vllm_refuses(
    gateway: Gateway, expected: tuple[list[int], list[int], list[float]]
) -> None:
    text, call = await recorded(
        gateway, "/v1/messages/count_tokens", {"model": "policy", "messages": MESSAGES}
    )
    assert json.loads(text)["input_tokens"] == len(expected[0])
    assert call.choices == ()
    status, reply = await gateway.json("/v1/messages", {"model": "policy", "messages": MESSAGES})
    assert (status, reply["type"], "max_tokens" in reply["error"]["message"]) == (
        400,
        "error",
        True,
    )
    status, reply = await gateway.json("/v1/embeddings", {"model": "policy", "input": "abc"})
    assert status in (404, 501)
    assert reply["error"]["message"]
