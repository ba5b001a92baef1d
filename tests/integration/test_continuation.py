"""`continuation=tokens` against a real vLLM whose model says bytes that are no text: rendered anew,
no turn repeats what was generated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from openai import AsyncOpenAI

from fulgurite.events import LlmCall
from fulgurite.tokens import unpack_ids
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.vllm_local import LocalVllm
from tests.integration.gateway_process import Gateway, kafka_settings, running_gateway

pytestmark = pytest.mark.engine

END = 258
"""The tiny model's end of a turn; likelier than it is, so that answers end by themselves."""


def tokens(call: LlmCall) -> tuple[list[int], list[int]]:
    """Prompt and answer."""
    [choice] = call.choices
    return unpack_ids(call.prompt_token_ids or b"").tolist(), unpack_ids(
        choice.token_ids or b""
    ).tolist()


async def recorded(gateway: Gateway, rollout: str, number: int) -> LlmCall:
    calls = sorted(await gateway.calls(rollout), key=lambda call: call.started_at)
    assert len(calls) == number + 1
    return calls[number]


async def test_a_chat_goes_on_from_the_tokens_that_were_generated(
    kafka: LocalKafka, vllm_tiny: LocalVllm, topic_prefix: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    env: dict[str, Any] = {
        "FULGURITE_CONTINUE_TOKENS": "policy",
        "FULGURITE_ALIASES": "policy=policy,plain=policy",
    }
    async with running_gateway(settings, vllm_tiny.base_url, tmp_path, **env) as gateway:
        [rollout] = (await gateway.declare(n=1, task={}, mode="train", alias="policy"))["rollouts"]
        async with AsyncOpenAI(base_url=gateway.url + "/v1", api_key=rollout["api_key"]) as client:
            messages: list[Any] = [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is 1+1?"},
            ]

            async def say(model: str, *, stream: bool = False) -> tuple[str, str | None]:
                options: dict[str, Any] = {
                    "max_tokens": 600,
                    "temperature": 1,
                    "seed": 7,
                    "logit_bias": {str(END): 3},
                }
                if stream:
                    raw = await client.chat.completions.with_raw_response.create(
                        model=model, messages=messages, stream=True, **options
                    )
                    pieces = [
                        chunk.choices[0].delta.content or ""
                        async for chunk in raw.parse()
                        if chunk.choices
                    ]
                    return "".join(pieces), raw.headers.get("x-fulgurite-continuation")
                whole = cast(
                    Any,
                    await client.chat.completions.with_raw_response.create(
                        model=model, messages=messages, **options
                    ),
                )
                return whole.parse().choices[0].message.content or "", whole.headers.get(
                    "x-fulgurite-continuation"
                )

            said, how = await say("policy")
            assert how is None
            prompt, answer = tokens(await recorded(gateway, rollout["rollout_id"], 0))
            assert answer[-1] == END
            assert "\ufffd" in said, "the model's bytes happen to be text: the test shows nothing"

            # The agent sends back what it got, with white space lost, and asks on; twice.
            messages += [
                {"role": "assistant", "content": said.strip()},
                {"role": "user", "content": "Are you sure?"},
            ]
            _, how = await say("plain")
            assert how is None
            rendered, _ = tokens(await recorded(gateway, rollout["rollout_id"], 1))
            assert rendered[: len(prompt + answer)] != prompt + answer
            said, how = await say("policy")
            assert how == "tokens"
            second, more = tokens(await recorded(gateway, rollout["rollout_id"], 2))
            assert second[: len(prompt + answer)] == prompt + answer
            asked = second[len(prompt + answer) :]
            assert rendered[-len(asked) :] == asked

            messages += [
                {"role": "assistant", "content": said},
                {"role": "user", "content": "Really?"},
            ]
            _, how = await say("policy", stream=True)
            assert how == "tokens"
            third, _ = tokens(await recorded(gateway, rollout["rollout_id"], 3))
            assert third[: len(second + more)] == second + more

            # Other instructions are another prompt.
            messages[0] = {"role": "system", "content": "Be verbose."}
            assert (await say("policy"))[1] is None
