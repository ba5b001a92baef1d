"""Promise 1 against kill -9: whatever completion a client saw, a whole reply or a finish reason,
the log has.

Each gateway is killed at a random moment under load; for every other one the broker stands still by
then, so that every answer in flight is between the upstream and the acknowledgement. A gateway that
answers first and records after is caught by the same count.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fulgurite.enums import CallOutcome
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import GATEWAY, Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

CHAT = "/v1/chat/completions"
KILLS = 6
CLIENTS = 12
STILL_S = 0.2
"""How long the broker stands still before the kill: a hundred times what an acknowledgement takes.
"""


@pytest.fixture
def settings(kafka: LocalKafka) -> KafkaSettings:
    return kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")


class Clients:
    """Clients that ask one gateway without a pause, every other one for streams, until it is gone."""

    def __init__(self, gateway: Gateway) -> None:
        self.seen: set[str] = set()
        """Ids of the completions they saw."""
        self.cut_off = 0
        """Calls that got no completion."""
        self._gateway = gateway

    async def run(self) -> None:
        await asyncio.gather(*(self._one(stream=number % 2 == 1) for number in range(CLIENTS)))

    async def _one(self, *, stream: bool) -> None:
        body: dict[str, Any] = {
            "model": "policy",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": stream,
        }
        while self._gateway.process.is_running:
            try:
                async with self._gateway.post(CHAT, body) as response:
                    assert response.status == 200
                    await (self._stream(response) if stream else self._whole(response))
            except aiohttp.ClientError:
                self.cut_off += 1
                return

    async def _whole(self, response: aiohttp.ClientResponse) -> None:
        self.seen.add((await response.json())["id"])

    async def _stream(self, response: aiohttp.ClientResponse) -> None:
        async for line in response.content:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                if any(choice["finish_reason"] for choice in chunk["choices"]):
                    self.seen.add(chunk["id"])


async def kill_under_load(
    gateway: Gateway, kafka: LocalKafka, after_s: float, *, broker_stands_still: bool
) -> Clients:
    clients = Clients(gateway)
    load = asyncio.create_task(clients.run())
    await asyncio.sleep(after_s)
    try:
        if broker_stands_still:
            kafka.suspend(0)
            await asyncio.sleep(STILL_S)
        gateway.process.kill()
        await load
    finally:
        if broker_stands_still:
            kafka.resume(0)
    return clients


async def kill_all(
    settings: KafkaSettings,
    kafka: LocalKafka,
    stub: Stub,
    folder: Path,
    still: list[bool],
    module: str = GATEWAY,
) -> tuple[set[str], set[str], int]:
    """What clients saw of gateways killed one after the other, what the log has of it, and how many
    calls were cut off.
    """
    stub.reset()
    chance = random.Random()
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(create_topics, settings)
        start = partial(
            running_gateway, settings, stub.url, folder, make_topics=False, module=module
        )
        gateways = await asyncio.gather(*(stack.enter_async_context(start()) for _ in still))
        loads = [
            await kill_under_load(
                gateway, kafka, chance.uniform(0.2, 0.5), broker_stands_still=stands
            )
            for gateway, stands in zip(gateways, still, strict=True)
        ]
        # What a dead gateway had already sent may still arrive.
        await asyncio.sleep(1.0)
        logged = {
            call.call_id
            for call in await gateways[0].calls()
            if call.outcome is CallOutcome.success
        }
    return (
        set[str]().union(*(load.seen for load in loads)),
        logged,
        sum(load.cut_off for load in loads),
    )


async def test_no_client_saw_a_completion_that_the_log_lacks(
    settings: KafkaSettings, kafka: LocalKafka, stub: Stub, tmp_path: Path
) -> None:
    seen, logged, cut_off = await kill_all(
        settings, kafka, stub, tmp_path, [number % 2 == 1 for number in range(KILLS)]
    )
    print(  # noqa: T201 - shown beside the result
        f"{len(seen)} completions seen, {len(logged)} logged, {cut_off} calls cut off by "
        f"{KILLS} kills"
    )
    assert len(seen) > 5 * KILLS
    assert cut_off >= KILLS
    assert seen <= logged


async def test_a_gateway_that_answers_before_the_log_has_it_would_be_caught(
    settings: KafkaSettings, kafka: LocalKafka, stub: Stub, tmp_path: Path
) -> None:
    seen, logged, _ = await kill_all(
        settings, kafka, stub, tmp_path, [True], "tests.integration.hasty_gateway"
    )
    assert seen - logged
