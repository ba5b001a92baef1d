"""Dictation against a real vLLM: the model says what it is given, in its own tokens, and nothing of
it is learned from by reinforcement.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from openai import AsyncOpenAI, BadRequestError
from transformers import AutoTokenizer

from fulgurite.tokens import unpack_ids
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.model import tiny_model
from services.local_stack.vllm_local import LocalVllm
from tests.integration.gateway_process import kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

CALCULATOR: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calc",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
    },
}


async def test_a_model_server_without_the_plug_in_is_found_out(
    kafka: LocalKafka, stub: Stub, topic_prefix: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    stub.reset()
    body: dict[str, Any] = {
        "messages": [],
        "model": "policy",
        "fulgurite_dictate": {"content": "84"},
    }
    async with running_gateway(settings, stub.url, tmp_path) as gateway:
        for _ in range(2):
            async with gateway.post("/v1/chat/completions", body) as reply:
                assert reply.status == 400
                assert "does not say what it is told" in (await reply.json())["error"]["message"]


async def test_the_model_says_what_is_dictated(
    kafka: LocalKafka, vllm_tiny: LocalVllm, topic_prefix: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    tokenizer: Any = cast(Any, AutoTokenizer).from_pretrained(tiny_model())
    async with running_gateway(settings, vllm_tiny.base_url, tmp_path) as gateway:
        [rollout] = (await gateway.declare(n=1, task={}, mode="train", alias="policy"))["rollouts"]
        async with AsyncOpenAI(
            base_url=gateway.url + "/v1", api_key=rollout["api_key"], max_retries=0
        ) as client:
            messages: list[Any] = [{"role": "user", "content": "What is 12 times 7?"}]

            async def say(dictated: Any, **options: Any) -> Any:
                return await cast(Any, client).chat.completions.create(
                    model="policy",
                    messages=messages,
                    tools=[CALCULATOR],
                    extra_body={"fulgurite_dictate": dictated},
                    **options,
                )

            function = {"name": "calc", "arguments": json.dumps({"expression": "12*7"})}
            call = {"id": "c", "type": "function", "function": function}
            first = (await say({"tool_calls": [call]}, max_tokens=2)).choices[0]
            assert first.finish_reason == "tool_calls"
            [made] = first.message.tool_calls
            assert json.loads(made.function.arguments) == {"expression": "12*7"}
            messages += [
                first.message.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": made.id, "content": "84"},
            ]
            pieces = [
                chunk.choices[0].delta.content or ""
                async for chunk in await say(
                    {"content": "It is 84."}, temperature=0, max_completion_tokens=1, stream=True
                )
                if chunk.choices
            ]
            assert "".join(pieces) == "It is 84."

            wrongs: list[Any] = ["It is 84.", {}, {"content": ""}, {"tool_calls": []}]
            for wrong in wrongs:
                with pytest.raises(BadRequestError, match="fulgurite_dictate"):
                    await say(wrong)
            with pytest.raises(BadRequestError, match="needs chat completions"):
                await client.completions.create(
                    model="policy",
                    prompt="a",
                    extra_body={"fulgurite_dictate": {"content": "b"}},
                )
            await client.chat.completions.create(model="policy", messages=messages, max_tokens=5)

        calls = sorted(
            (call for call in await gateway.calls(rollout["rollout_id"]) if call.choices),
            key=lambda call: call.started_at,
        )
    answers: list[list[int]] = []
    prompts: list[list[int]] = []
    for call in calls[:2]:
        [choice] = call.choices
        answers.append(unpack_ids(choice.token_ids or b"").tolist())
        prompts.append(unpack_ids(call.prompt_token_ids or b"").tolist())
        assert call.sampling.logit_bias, "must not be trained on by reinforcement"
    end = tokenizer.eos_token_id
    assert [answer[-1] for answer in answers] == [end, end]
    assert tokenizer.decode(answers[1][:-1]) == "It is 84."
    assert prompts[1][: len(prompts[0] + answers[0])] == prompts[0] + answers[0]
    assert not calls[-1].sampling.logit_bias
