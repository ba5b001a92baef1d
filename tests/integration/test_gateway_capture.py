"""Token ids and log-probabilities of a real vLLM are recorded the same, byte for byte, whichever way
they come: packed by our plug-in, or in the standard fields of a server that does not know it.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from fulgurite.events import LlmCall
from services.gateway.dialects.packed import ASK_HEADER
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.ports import free_port
from services.local_stack.vllm_local import LocalVllm
from tests.integration.gateway_process import Gateway, kafka_settings, running_gateway

pytestmark = [pytest.mark.engine]


@asynccontextmanager
async def without_the_plugin(upstream: str, asked: list[bytes]) -> AsyncGenerator[str]:
    """A way to vLLM on which its plug-in is not asked for packed tokens; `asked` gets the bodies."""
    async with aiohttp.ClientSession() as client:

        async def forward(request: web.Request) -> web.StreamResponse:
            headers = request.headers.copy()
            for name in (ASK_HEADER, "host", "content-length"):
                headers.popall(name, None)
            asked.append(await request.read())
            async with client.request(
                request.method, upstream + request.path_qs, data=asked[-1], headers=headers
            ) as answer:
                reply = web.StreamResponse(
                    status=answer.status, headers={"content-type": answer.headers["content-type"]}
                )
                await reply.prepare(request)
                async for piece in answer.content.iter_any():
                    await reply.write(piece)
                await reply.write_eof()
                return reply

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            await runner.cleanup()


async def ask(gateway: Gateway, **fields: Any) -> LlmCall:
    """A call, as it is recorded."""
    group = await gateway.declare(n=1)
    [rollout] = group["rollouts"]
    body = {"model": "policy", "messages": [{"role": "user", "content": "abc"}], "seed": 1}
    body |= {"max_tokens": 24, "temperature": 1.0, "ignore_eos": True, **fields}
    async with gateway.post("/v1/chat/completions", body, rollout["api_key"]) as reply:
        text = await reply.text()
        assert reply.status == 200, text
    assert '"logprob":' not in text, "the agent asked for none"
    assert "fulgurite_tokens" not in text
    return await gateway.call(rollout["rollout_id"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("top_k", [-1, 1])
async def test_recorded_tokens_are_the_same_packed_and_in_json(
    kafka: LocalKafka, vllm_tiny: LocalVllm, tmp_path: Path, *, stream: bool, top_k: int
) -> None:
    asked: list[bytes] = []
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(without_the_plugin(vllm_tiny.base_url, asked))
        gateways = [
            await stack.enter_async_context(
                running_gateway(
                    kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}."),
                    upstream,
                    tmp_path,
                )
            )
            for upstream in (vllm_tiny.base_url, plain)
        ]
        # Whoever comes first finds no prefix in the cache, and rounds otherwise.
        await ask(gateways[0], stream=stream, top_k=top_k)
        packed, in_json = [await ask(one, stream=stream, top_k=top_k) for one in gateways]
    assert any(b'"logprobs":true' in body for body in asked)
    assert packed.choices == in_json.choices
    assert packed.prompt_token_ids == in_json.prompt_token_ids
    [choice] = packed.choices
    assert len(choice.token_ids or b"") == len(choice.logprobs or b"") == 4 * 24
