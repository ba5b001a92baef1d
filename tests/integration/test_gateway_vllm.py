"""The gateway before a real vLLM, spoken to by the plain `openai` client: an agent sees OpenAI, the
log sees the engine's tokens.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from openai import AsyncOpenAI, BadRequestError
from openai.types.chat import ChatCompletionMessageParam

from fulgurite.enums import LogprobsMode
from fulgurite.failures import FailureKind
from fulgurite.tokens import token_count, unpack_logprobs
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.vllm_local import LocalVllm
from tests.integration.gateway_process import kafka_settings, running_gateway

pytestmark = [pytest.mark.engine]

MESSAGES = cast("list[ChatCompletionMessageParam]", [{"role": "user", "content": "abc"}])


async def test_calls_of_a_real_engine(
    kafka: LocalKafka, vllm_tiny: LocalVllm, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")
    async with running_gateway(settings, vllm_tiny.base_url, tmp_path) as gateway:
        group = await gateway.declare(n=4)
        keys = [rollout["api_key"] for rollout in group["rollouts"]]
        rollouts = [rollout["rollout_id"] for rollout in group["rollouts"]]

        async with AsyncOpenAI(base_url=gateway.url + "/v1", api_key=keys[0]) as client:
            reply = await client.chat.completions.create(
                model="policy", messages=MESSAGES, max_tokens=8, seed=1
            )
        assert not (reply.model_extra or {}).get("prompt_token_ids")
        assert reply.choices[0].logprobs is None
        whole = await gateway.call(rollouts[0])
        assert whole.call_id == reply.id
        assert whole.prompt_tokens == token_count(whole.prompt_token_ids or b"") > 0
        choice = whole.choices[0]
        assert (
            whole.completion_tokens
            == token_count(choice.token_ids or b"")
            == token_count(choice.logprobs or b"")
        )
        assert np.all(unpack_logprobs(choice.logprobs or b"") <= 0)
        assert whole.logprobs_mode is LogprobsMode.processed

        async with AsyncOpenAI(base_url=gateway.url + "/v1", api_key=keys[1]) as client:
            stream = await client.chat.completions.create(
                model="policy", messages=MESSAGES, max_tokens=8, seed=1, stream=True
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        streamed = await gateway.call(rollouts[1])
        assert "".join(pieces) == reply.choices[0].message.content
        assert streamed.choices[0].token_ids == choice.token_ids
        assert streamed.prompt_token_ids == whole.prompt_token_ids
        assert streamed.completion_tokens == whole.completion_tokens
        np.testing.assert_allclose(
            unpack_logprobs(streamed.choices[0].logprobs or b""),
            unpack_logprobs(choice.logprobs or b""),
            atol=0.05,
        )
        for call in (whole, streamed):
            assert (call.version_first or "").startswith("policy@")
            assert call.version_last == call.version_first

        async with AsyncOpenAI(base_url=gateway.url + "/v1", api_key=keys[2]) as client:
            reply = await client.chat.completions.create(
                model="policy", messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2, n=2
            )
        assert [
            len(c.logprobs.content[0].top_logprobs)
            for c in reply.choices
            if c.logprobs and c.logprobs.content
        ] == [2, 2]
        assert len((await gateway.call(rollouts[2])).choices) == 2

        long = cast(
            "list[ChatCompletionMessageParam]", [{"role": "user", "content": "abc " * 20_000}]
        )
        async with AsyncOpenAI(
            base_url=gateway.url + "/v1", api_key=keys[3], max_retries=0
        ) as client:
            with pytest.raises(BadRequestError) as caught:
                await client.chat.completions.create(model="policy", messages=long)
        assert caught.value.code == "context_length_exceeded"
        assert (await gateway.call(rollouts[3])).failure is FailureKind.context_overflow
