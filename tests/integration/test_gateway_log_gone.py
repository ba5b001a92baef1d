"""How a gateway stops: with its streams ended and all it knows in the log, or at once with a
reason.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import PLAIN, kafka_settings, running_gateway
from tests.integration.stub_upstream import running_stub

pytestmark = [pytest.mark.engine]

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}
ROLLOUT = "x-fulgurite-rollout-id"


async def test_a_gateway_that_stops_ends_its_streams_and_flushes(
    kafka: LocalKafka, tmp_path: Path, topic_prefix: str
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    async with running_stub() as stub, running_gateway(settings, stub.url, tmp_path) as gateway:
        stub.reset(gates=True)
        async with gateway.post(CHAT, BODY | {"stream": True}, PLAIN) as response:
            await response.content.readuntil(b"\n\n")
            gateway.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            assert gateway.process.is_running
            stub.release(10)
            text = await response.text()
            assert "[DONE]" in text
        assert await asyncio.to_thread(gateway.process.wait, 20) == 0
        assert (await gateway.call(response.headers[ROLLOUT])).choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"FULGURITE_SIGNING_KEYS": ""}, "FULGURITE_SIGNING_KEYS is empty"),
        ({"FULGURITE_ALIASES": "policy"}, "is not alias=policy"),
    ],
)
async def test_settings_that_make_no_sense_stop_it_with_a_reason(
    tmp_path: Path, env: dict[str, str], says: str
) -> None:
    with pytest.raises(AssertionError, match=says):
        async with running_gateway(
            kafka_settings("127.0.0.1:1", "x."),
            "http://127.0.0.1:1",
            tmp_path,
            make_topics=False,
            **env,
        ):
            pass
