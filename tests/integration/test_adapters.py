"""LoRA adapters, one per role, in a real vLLM: loaded by the applier from the log, asked for by the
gateway, equal to Hugging Face's.
"""

# transformers and safetensors are annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fulgurite.avro.codec import Codec
from fulgurite.enums import ApplyOutcome, ArtifactFormat, UpdateKind
from fulgurite.events import Artifact, PolicyApplied, PolicyRoute, PolicyUpdate, Probe, RouteTarget
from fulgurite.ids import derive_id
from fulgurite.tokens import pack_ids, pack_logprobs, unpack_ids, unpack_logprobs
from fulgurite.topics import POLICY_APPLIED, POLICY_ROUTES, POLICY_UPDATES
from fulgurite.versions import Version
from services.applier.engine import Engine
from services.common.kafka.consumer import read_all
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.common.processes.supervisor import ProcessSpec, Supervisor
from services.learner.artifacts import ArtifactStore
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.model import tiny_model
from services.local_stack.vllm_local import LocalVllm
from tests.integration.gateway_process import Gateway, running_gateway
from tests.integration.lora_adapter import PROBE_IDS, Adapter, emptied, hugging_face_logprobs

with warnings.catch_warnings():
    # verl tells of every engine that is not installed.
    warnings.simplefilter("ignore")
    from tests.services.learner.test_lora import adapted
    from tests.services.learner.test_trainer import batch, sampled, step

pytestmark = pytest.mark.engine

WAIT_S = 90.0


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return [Adapter(folder / str(seed), seed) for seed in range(6)]


class Bench:
    """A log of its own, and an applier for two roles' adapters."""

    def __init__(self, kafka: LocalKafka, vllm: LocalVllm, topic_prefix: str, folder: Path) -> None:
        self.vllm = vllm
        self.settings = KafkaSettings.model_validate(
            {
                "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
                "FULGURITE_TOPIC_PREFIX": topic_prefix,
            }
        )
        create_topics(self.settings)
        self.codec = Codec()
        self.producer = EventProducer(self.settings, self.codec, "test")
        self.supervisor = Supervisor()
        self.log = folder / "applier.log"
        env = {
            "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "FULGURITE_TOPIC_PREFIX": topic_prefix,
            "VLLM_BASE_URL": f"other=http://127.0.0.1:1,east={vllm.base_url}",
            "FULGURITE_BACKEND": "east",
            "FULGURITE_LORA_POLICIES": "writer,checker",
            "FULGURITE_MODEL": str(tiny_model()),
        }
        spec = ProcessSpec(
            name="applier",
            argv=[sys.executable, "-m", "services.applier.main"],
            log=self.log,
            env=env,
        )
        self.process = self.supervisor.add(spec)

    def close(self) -> None:
        self.supervisor.close()
        self.producer.close()

    def claim(self, policy: str) -> None:
        event = PolicyUpdate(
            event_id=derive_id("claim", policy), event_time=1, policy=policy, kind=UpdateKind.claim, epoch=1, step=0, learner_id="l",
            trained_actions=0,
        )  # fmt: skip
        self.producer.publish_sync(POLICY_UPDATES, policy, event)

    def update(
        self, policy: str, step: int, adapter: Adapter, logprobs: list[float] | None = None
    ) -> None:
        self.publish(policy, step, adapter.artifact(), logprobs or adapter.logprobs())

    def publish(
        self, policy: str, step: int, artifact: Artifact, logprobs: Sequence[float]
    ) -> None:
        probe = Probe(token_ids=pack_ids(PROBE_IDS), logprobs=pack_logprobs(logprobs))
        event = PolicyUpdate(
            event_id=derive_id("update", policy, step), event_time=1, policy=policy, kind=UpdateKind.update, epoch=1, step=step,
            version=f"{policy}@1.{step}", learner_id="l", artifact=artifact, probe=probe, trained_actions=1,
        )  # fmt: skip
        self.producer.publish_sync(POLICY_UPDATES, policy, event)

    def route(self, alias: str, **shares: float) -> None:
        targets = tuple(
            RouteTarget(policy="writer", version=f"writer@1.{step[1:]}", weight=share)
            for step, share in shares.items()
        )
        event = PolicyRoute(
            event_id=derive_id("route", alias, *shares),
            event_time=1,
            alias=alias,
            targets=targets,
            reason="test",
            author="test",
        )
        self.producer.publish_sync(POLICY_ROUTES, alias, event)

    def told(self) -> list[tuple[str, ApplyOutcome]]:
        return [(event.version, event.outcome) for event in self.events()]

    def events(self) -> list[PolicyApplied]:
        with contextlib.suppress(LogUnavailable):
            return [
                r.event
                for r in read_all(self.settings, POLICY_APPLIED, self.codec)
                if isinstance(r.event, PolicyApplied)
            ]
        return []

    def wait_for(self, holds: Callable[[list[tuple[str, ApplyOutcome]]], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not holds(told := self.told()):
            assert time.monotonic() < deadline, f"told: {told}\n{self.log.read_text()}"
            time.sleep(0.1)

    def wait_applied(self, *versions: str, times: int = 1) -> None:
        self.wait_for(
            lambda told: all(told.count((v, ApplyOutcome.applied)) >= times for v in versions)
        )

    def listed(self) -> set[str]:
        async def ask() -> set[str]:
            async with Engine(self.vllm.base_url) as engine:
                return set(await engine.adapters())

        return asyncio.run(ask())


@pytest.fixture
def bench(
    kafka: LocalKafka, vllm_tiny: LocalVllm, topic_prefix: str, tmp_path: Path
) -> Iterator[Bench]:
    bench = Bench(kafka, vllm_tiny, topic_prefix, tmp_path)
    yield bench
    bench.close()
    asyncio.run(emptied(vllm_tiny))


def difference(one: list[float], other: list[float]) -> float:
    return float(np.abs(np.subtract(one, other)).mean())


async def chat(gateway: Gateway, alias: str, key: str) -> tuple[dict[str, Any], dict[str, str]]:
    body = {
        "model": alias,
        "messages": [{"role": "user", "content": "what?"}],
        "max_tokens": 12,
        "temperature": 1,
    }
    async with gateway.post("/v1/chat/completions", body, key) as response:
        reply = await response.json()
        assert response.status == 200, reply
        return reply, dict(response.headers)


async def recorded_logprobs(gateway: Gateway, group: dict[str, Any], model: Any) -> float:
    """How far the engine's log-probabilities of a recorded answer are from Hugging Face's."""
    call = await gateway.call(group["rollouts"][0]["rollout_id"])
    [choice] = call.choices
    assert call.prompt_token_ids is not None
    assert choice.token_ids is not None
    assert choice.logprobs is not None
    prompt, answer = (
        unpack_ids(call.prompt_token_ids).tolist(),
        unpack_ids(choice.token_ids).tolist(),
    )
    expected = hugging_face_logprobs(model, prompt + answer)[len(prompt) - 1 :]
    return difference(unpack_logprobs(choice.logprobs).tolist(), expected)


async def test_two_roles_on_one_engine_each_with_its_own_adapter(
    bench: Bench, adapters: list[Adapter], tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
    first, second = adapters[:2]
    assert (
        difference(first.logprobs(), second.logprobs())
        > 0.3
        < difference(first.logprobs(), hugging_face_logprobs(base, PROBE_IDS))
    )
    bench.process.start()
    await asyncio.to_thread(bench.wait_applied, "policy@0.0")  # whatever the tests before have left
    env = {
        "FULGURITE_ALIASES": "policy=policy,sql=writer,judge=checker",
        "FULGURITE_LORA_POLICIES": "writer,checker",
        "VLLM_BASE_URL": f"east={bench.vllm.base_url}",
    }
    async with running_gateway(
        bench.settings, bench.vllm.base_url, tmp_path, make_topics=False, **env
    ) as gateway:

        async def answer(alias: str, model: Any) -> tuple[float, str, dict[str, Any]]:
            group = await gateway.declare(n=1, task={}, mode="train", alias=alias)
            reply, headers = await chat(gateway, alias, group["rollouts"][0]["api_key"])
            return (
                await recorded_logprobs(gateway, group, model),
                headers["x-fulgurite-version"],
                reply,
            )

        # Before any update every role is the base model, each under its own policy's name.
        assert (await answer("sql", base))[1] == "writer@0.0"
        for policy, adapter in (("writer", first), ("checker", second)):
            bench.claim(policy)
            bench.update(policy, 1, adapter)
        await asyncio.to_thread(bench.wait_applied, "writer@1.1", "checker@1.1")
        await known(gateway, "writer", "writer@1.1")
        await known(gateway, "checker", "checker@1.1")
        for alias, adapter, version in (
            ("sql", first, "writer@1.1"),
            ("judge", second, "checker@1.1"),
        ):
            found, told, reply = await answer(alias, adapter.model)
            assert (told, reply["model"]) == (version, alias)
            assert found < 0.1
        found, told, _ = await answer("policy", base)
        assert (found < 0.1, told) == (True, "policy@0.0")
        calls = {call.alias: call for call in await gateway.calls()}
        assert (calls["judge"].policy, calls["judge"].version_last, calls["judge"].backend) == (
            "checker",
            "checker@1.1",
            "east",
        )

        # A route pins an old version; the newest stays loaded beside it.
        bench.update("writer", 2, second)
        await asyncio.to_thread(bench.wait_applied, "writer@1.2")
        bench.route("sql", v1=1.0)
        await known(gateway, "writer", "writer@1.2")
        await asyncio.sleep(0.5)
        assert (await answer("sql", first.model))[1] == "writer@1.1"


async def known(gateway: Gateway, policy: str, version: str) -> None:
    """Return once the gateway has read that a backend serves it."""
    for _ in range(100):
        _, policies = await gateway.get("/v1/policies")
        [listed] = [one for one in policies["data"] if one["policy"] == policy]
        if any(version in backend["versions"] for backend in listed["backends"]):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"the gateway does not know that {version} is served")


def test_old_versions_are_retired_and_pinned_ones_never(
    bench: Bench, adapters: list[Adapter]
) -> None:
    bench.process.start()
    bench.claim("writer")
    bench.route("sql", v1=0.5, v9=0.5)
    for step, adapter in enumerate(adapters, 1):
        bench.update("writer", step, adapter)
        bench.wait_applied(f"writer@1.{step}")
    bench.wait_for(lambda told: ("writer@1.4", ApplyOutcome.retired) in told)
    assert bench.listed() == {"writer@1.1", "writer@1.5", "writer@1.6"}
    assert ("writer@1.1", ApplyOutcome.retired) not in bench.told()


def test_a_damaged_adapter_and_a_wrong_one_are_told_and_not_served(
    bench: Bench, adapters: list[Adapter], tmp_path: Path
) -> None:
    damaged = Adapter(tmp_path / "damaged", 9)
    bench.process.start()
    bench.claim("writer")
    announced = damaged.artifact()
    damaged.path.write_bytes(damaged.path.read_bytes()[:-1] + b"?")
    damaged.artifact = lambda: announced  # type: ignore[method-assign]
    bench.update("writer", 1, damaged)
    bench.update("writer", 2, adapters[0], adapters[1].logprobs())
    bench.update("writer", 3, adapters[0])
    bench.wait_applied("writer@1.3")
    bench.update("writer", 4, adapters[0], adapters[1].logprobs())
    bench.wait_for(lambda told: ("writer@1.4", ApplyOutcome.failed) in told)
    bench.route("sql", v1=1.0)
    bench.wait_for(lambda told: ("writer@1.1", ApplyOutcome.failed) in told)
    errors = {
        event.version: str(event.error)
        for event in bench.events()
        if event.outcome is ApplyOutcome.failed
    }
    assert "SHA-256" in errors["writer@1.1"]
    assert "log-probabilities" in errors["writer@1.4"]
    assert bench.listed() == {"writer@1.3"}


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
def test_a_trained_adapter_is_served_as_the_learner_has_it(bench: Bench, tmp_path: Path) -> None:
    """From the trainer's steps to the engine, by the files and the probe that a learner publishes."""
    lora = adapted(rank=8, engine={"dtype": "bf16"}, algorithm={"kl": 0.01}, optimizer={"lr": 3e-2})
    before = lora.logprobs(PROBE_IDS)
    for seed in range(4):
        step(lora, sampled(lora, batch(seed)))
    learned = lora.logprobs(PROBE_IDS)
    assert np.abs(learned - before).mean() > 0.3, "the base model would fail the probe"
    store = ArtifactStore(tmp_path, "writer", tiny_model(), kind=ArtifactFormat.lora, durable=False)
    artifact = store.write(Version("writer", 1, 1), lora.export)
    bench.process.start()
    bench.claim("writer")
    bench.publish("writer", 1, artifact, learned.tolist())
    bench.wait_applied("writer@1.1")

    async def served() -> list[float]:
        async with Engine(bench.vllm.base_url) as engine:
            return await engine.prompt_logprobs(PROBE_IDS, "writer@1.1")

    assert difference(asyncio.run(served()), learned.tolist()) < 0.1
