"""A whole stack for agents: Kafka, vLLM with SmolLM2-135M on this machine's CPU, aggregator,
rewarder and gateway, each a real process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.events import Episode, Event, Tombstone, Trajectory
from fulgurite.topics import EPISODES, TRAJECTORIES, Topic
from services.common.kafka.consumer import read_all
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.common.processes.supervisor import ProcessSpec, Supervisor
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.local_services import project_folder
from services.local_stack.model import model_folder
from services.local_stack.vllm_local import LocalVllm
from services.local_stack.vllm_settings import VllmSettings
from tests.agents.quickstarts import Speech
from tests.integration.gateway_process import Gateway, kafka_settings, running_gateway

WAIT_S = 60.0
LONGEST_ANSWER = 96
"""Tokens: a small model with nothing to say says it at length."""
LONGEST_CONTEXT = 81_920
"""Tokens: ten times what SmolLM2 was trained for, because clients ask for answers of up to 64,000
without knowing whom they ask.
"""
DICTATION = "FULGURITE_TEST_DICTATION"


class AgentStack:
    """The running stack, and what the tests ask of it."""

    def __init__(self, gateway: Gateway, kafka: KafkaSettings, dictation: Path) -> None:
        self.gateway = gateway
        self.kafka = kafka
        self._dictation = dictation

    def dictate(self, script: Sequence[Speech]) -> None:
        """From now on the model says this; nothing: what it likes."""
        self._dictation.write_bytes(msgspec.json.encode(script))

    async def declare(self, alias: str) -> dict[str, Any]:
        """A rollout to train on: its id and its two keys."""
        group = await self.gateway.declare(
            n=1, alias=alias, expected_rewards=["reward"], deadline_s=900
        )
        return group["rollouts"][0]

    async def finish(self, rollout: dict[str, Any]) -> None:
        """Its agent has ended, and was paid."""
        name = rollout["rollout_id"]
        status, told = await self.gateway.json(
            f"/v1/rollouts/{name}/status", {"kind": "finished", "exit_code": 0}, rollout["api_key"]
        )
        assert status == 201, told
        status, told = await self.gateway.json(
            "/v1/rewards",
            {"rollout_id": name, "name": "reward", "value": 1.0},
            rollout["reward_key"],
        )
        assert status == 201, told

    async def episodes(self, rollout: str) -> list[Episode]:
        """Of a rollout, as soon as there are any."""
        return [event for event in await self._of(EPISODES, rollout) if isinstance(event, Episode)]

    async def rows(self, rollout: str) -> list[Trajectory | Tombstone]:
        """What the rewarder made of it."""
        return [
            event
            for event in await self._of(TRAJECTORIES, rollout)
            if isinstance(event, Trajectory | Tombstone)
        ]

    async def _of(self, topic: Topic, rollout: str) -> list[Event]:
        deadline = time.monotonic() + WAIT_S
        while True:
            events = await asyncio.to_thread(self._read, topic)
            found = [
                event
                for event in events
                if isinstance(event, Episode | Trajectory | Tombstone)
                and event.rollout_id == rollout
            ]
            if found:
                return list(found)
            assert time.monotonic() < deadline, f"nothing of {rollout} in {topic.name}"
            await asyncio.sleep(0.3)

    def _read(self, topic: Topic) -> list[Event]:
        return [
            record.event
            for record in read_all(self.kafka, topic, Codec())
            if record.event is not None
        ]


@asynccontextmanager
async def running_stack(folder: Path, aliases: Sequence[str]) -> AsyncGenerator[AgentStack]:
    """Everything started, in parallel; stopped at the end."""
    dictation = folder / "dictation.json"
    dictation.write_text("[]")
    supervisor = Supervisor()
    try:
        vllm = _vllm(folder, dictation, supervisor).start()
        with LocalKafka(folder / "kafka", heap_mb=384) as broker:
            kafka = kafka_settings(broker.bootstrap_servers, "agents.")
            create_topics(kafka)
            processors = [
                supervisor.start(_processor(name, kafka, folder))
                for name in ("aggregator", "rewarder")
            ]
            routes = {
                "FULGURITE_ALIASES": ",".join(
                    f"{alias}=policy" for alias in ("policy", *aliases) if alias != "policy"
                )
                + ",policy=policy"
            }
            async with running_gateway(
                kafka, vllm.base_url, folder, make_topics=False, **routes
            ) as gateway:
                for process in processors:
                    process.wait_ready()
                vllm.wait_ready()
                yield AgentStack(gateway, kafka, dictation)
    finally:
        supervisor.close()


def _vllm(folder: Path, dictation: Path, supervisor: Supervisor) -> LocalVllm:
    limit = json.dumps({"max_new_tokens": LONGEST_ANSWER})
    return LocalVllm(
        model_folder(),
        folder,
        settings=VllmSettings(context_length=LONGEST_CONTEXT, kv_cache_gib=2),
        extra=[
            "--override-generation-config",
            limit,
            "--logits-processors",
            "tests.agents.dictation:Dictation",
        ],
        env={
            DICTATION: str(dictation),
            "PYTHONPATH": str(project_folder()),
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        },
        supervisor=supervisor,
    )


def _processor(name: str, kafka: KafkaSettings, folder: Path) -> ProcessSpec:
    log = folder / f"{name}.log"
    return ProcessSpec(
        name=name,
        argv=[sys.executable, "-m", f"services.{name}.main"],
        log=log,
        env={
            "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "FULGURITE_TOPIC_PREFIX": kafka.topic_prefix,
        },
        ready=_says_ready(log),
    )


def _says_ready(log: Path) -> Callable[[], bool]:
    return lambda: log.is_file() and '"event": "ready"' in log.read_text()
