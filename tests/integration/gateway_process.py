"""A real gateway in a process of its own, and what a test may ask of it and of its topics."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from fulgurite.avro.codec import Codec
from fulgurite.events import AgentReward, AgentStatus, Event, LlmCall
from fulgurite.topics import AGENT_REWARDS, AGENT_STATUS, Topic
from services.common.kafka.consumer import read_all
from services.common.kafka.logged_calls import read_calls
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.common.processes.process import ChildProcess
from services.local_stack.ports import free_ports

GATEWAY = "services.gateway.main"
ADMIN = "the-admin-key"
PLAIN = "a-plain-key"
SIGNING = "k1:0123456789abcdef0123456789abcdef"
_CODEC = Codec()
_READY_S = 60.0


class Gateway:
    """A running gateway and a client of it."""

    def __init__(
        self,
        url: str,
        kafka: KafkaSettings,
        process: ChildProcess,
        client: aiohttp.ClientSession,
        log: Path,
    ) -> None:
        self.url = url
        self.kafka = kafka
        self.process = process
        self.client = client
        self.log = log

    def post(self, path: str, body: Any, key: str = PLAIN, **headers: str) -> Any:
        """A POST, for `async with`. Bytes are sent as they are."""
        named = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, bytes):
            return self.client.post(self.url + path, data=body, headers=named)
        return self.client.post(self.url + path, json=body, headers=named)

    async def json(
        self, path: str, body: Any, key: str = PLAIN, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """Status and body of a POST."""
        async with self.post(path, body, key, **headers) as response:
            return response.status, await response.json()

    async def get(self, path: str, key: str = PLAIN) -> tuple[int, dict[str, Any]]:
        """Status and body of a GET."""
        async with self.client.get(
            self.url + path, headers={"authorization": f"Bearer {key}"}
        ) as response:
            return response.status, await response.json()

    async def declare(self, **fields: Any) -> dict[str, Any]:
        """A declared group."""
        status, group = await self.json("/v1/rollouts", fields, ADMIN)
        assert status == 201, group
        return group

    async def calls(self, rollout: str | None = None) -> list[LlmCall]:
        """What `llm.calls` holds, whole."""
        records = await asyncio.to_thread(lambda: list(read_calls(self.kafka, _CODEC)))
        return [
            r.event
            for r in records
            if isinstance(r.event, LlmCall) and rollout in (None, r.event.rollout_id)
        ]

    async def call(self, rollout: str, timeout_s: float = 20.0) -> LlmCall:
        """The one call of a rollout, as soon as it is there."""
        for _ in range(int(timeout_s / 0.2)):
            found = await self.calls(rollout)
            if found:
                assert len(found) == 1
                return found[0]
            await asyncio.sleep(0.2)
        raise AssertionError(f"no call of {rollout} in the log")

    async def statuses(self, group: str) -> list[AgentStatus]:
        """What `agent.status` holds of a group."""
        return [
            e
            for e in await self._events(AGENT_STATUS)
            if isinstance(e, AgentStatus) and e.group_id == group
        ]

    async def rewards(self, group: str) -> list[AgentReward]:
        """What `agent.rewards` holds of a group."""
        return [
            e
            for e in await self._events(AGENT_REWARDS)
            if isinstance(e, AgentReward) and e.group_id == group
        ]

    async def _events(self, topic: Topic) -> list[Event]:
        records = await asyncio.to_thread(lambda: list(read_all(self.kafka, topic, _CODEC)))
        return [record.event for record in records if record.event is not None]


def kafka_settings(bootstrap: str, prefix: str, replication: int = 1) -> KafkaSettings:
    """Settings without an environment."""
    return KafkaSettings(bootstrap_servers=bootstrap, topic_prefix=prefix, replication=replication)


@asynccontextmanager
async def running_gateway(
    kafka: KafkaSettings,
    upstream: str,
    folder: Path,
    *,
    make_topics: bool = True,
    module: str = GATEWAY,
    **env: str,
) -> AsyncGenerator[Gateway]:
    """A gateway on a free port, with topics of its own."""
    if make_topics:
        await asyncio.to_thread(create_topics, kafka)
    [port] = free_ports(1)
    log = folder / f"gateway-{port}.log"
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FULGURITE_", "KAFKA_", "REDIS_"))
        },
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "FULGURITE_TOPIC_PREFIX": kafka.topic_prefix,
        "FULGURITE_REPLICATION": str(kafka.replication),
        "VLLM_BASE_URL": upstream,
        "FULGURITE_SIGNING_KEYS": SIGNING,
        "FULGURITE_ADMIN_KEY": ADMIN,
        "FULGURITE_API_KEYS": PLAIN,
        "FULGURITE_GATEWAY_PORT": str(port),
        "FULGURITE_LOG_LEVEL": "DEBUG",
        **env,
    }
    process = ChildProcess([sys.executable, "-m", module], log, env=environment)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
    ) as client:
        gateway = Gateway(f"http://127.0.0.1:{port}", kafka, process, client, log)
        try:
            await _wait_for(gateway)
            yield gateway
        finally:
            await asyncio.to_thread(process.end, 20)


async def _wait_for(gateway: Gateway) -> None:
    for _ in range(int(_READY_S / 0.1)):
        assert gateway.process.is_running, gateway.log.read_text()
        try:
            await gateway.get("/healthz")
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)
        else:
            return
    raise AssertionError(f"the gateway does not answer: {gateway.log.read_text()}")
