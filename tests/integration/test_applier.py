"""The real applier process between a real log and a real vLLM: what is published is served, proved,
and survives restarts.
"""

# transformers and safetensors are annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fulgurite.avro.codec import Codec
from fulgurite.enums import ApplyOutcome, ArtifactFormat, CallOutcome, UpdateKind
from fulgurite.events import Artifact, PolicyApplied, PolicyRoute, PolicyUpdate, Probe, RouteTarget
from fulgurite.ids import derive_id
from fulgurite.tokens import pack_ids, pack_logprobs
from fulgurite.topics import POLICY_APPLIED, POLICY_ROUTES, POLICY_UPDATES
from services.applier.engine import Engine
from services.common.kafka.consumer import read_all
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.common.processes.supervisor import ProcessSpec, Supervisor
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.model import tiny_model
from services.local_stack.vllm_local import LocalVllm
from tests.integration.gateway_process import Gateway, running_gateway
from tests.integration.lora_adapter import Adapter, emptied

pytestmark = pytest.mark.engine

PROBE_IDS = list(range(40, 72))
WAIT_S = 90.0
LEARNER = "learner-a"


class Weights:
    """A version's file, and the log-probabilities that Hugging Face computes with it."""

    def __init__(self, folder: Path, seed: int) -> None:
        base = tiny_model()
        shutil.copytree(base, folder)
        self.path = folder / "model.safetensors"
        torch.manual_seed(seed)
        tensors = load_file(base / "model.safetensors")
        changed = {
            name: (t.float() * (1 + 0.3 * torch.randn_like(t.float()))).to(t.dtype)
            for name, t in tensors.items()
        }
        save_file(changed, self.path, metadata={"format": "pt"})
        self.sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()
        self.logprobs = hugging_face_logprobs(folder)

    def artifact(self) -> Artifact:
        return Artifact(
            uri=self.path.as_uri(),
            sha256=self.sha256,
            size=self.path.stat().st_size,
            format=ArtifactFormat.full,
        )

    def probe(self) -> Probe:
        return Probe(token_ids=pack_ids(PROBE_IDS), logprobs=pack_logprobs(self.logprobs))


def hugging_face_logprobs(folder: Path) -> list[float]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([PROBE_IDS])).logits[0, :-1]
    return torch.log_softmax(logits, -1)[range(len(PROBE_IDS) - 1), PROBE_IDS[1:]].tolist()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[Weights]:
    folder = tmp_path_factory.mktemp("artifacts")
    return [Weights(folder / str(seed), seed) for seed in (1, 2)]


class Bench:
    """A log of its own, the shared vLLM, and the applier as a process."""

    def __init__(
        self,
        kafka: LocalKafka,
        vllm: LocalVllm,
        topic_prefix: str,
        folder: Path,
        model: Path | None = None,
    ) -> None:
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
        self.process = self.supervisor.add(
            ProcessSpec(
                name="applier",
                argv=[sys.executable, "-m", "services.applier.main"],
                log=self.log,
                env={
                    "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
                    "FULGURITE_TOPIC_PREFIX": topic_prefix,
                    "VLLM_BASE_URL": vllm.base_url,
                    "FULGURITE_MODEL": str(model or tiny_model()),
                    "FULGURITE_LORA_POLICIES": "writer",
                },
            )
        )

    def close(self) -> None:
        self.supervisor.close()
        self.producer.close()

    def claim(self, epoch: int, learner: str = LEARNER) -> None:
        event = PolicyUpdate(
            event_id=derive_id("claim", epoch, learner), event_time=1, policy="policy", kind=UpdateKind.claim,
            epoch=epoch, step=0, learner_id=learner, trained_actions=0,
        )  # fmt: skip
        self.producer.publish_sync(POLICY_UPDATES, "policy", event)

    def update(
        self, epoch: int, step: int, artifact: Artifact, probe: Probe, learner: str = LEARNER
    ) -> None:
        event = PolicyUpdate(
            event_id=derive_id("update", epoch, step, learner), event_time=1, policy="policy", kind=UpdateKind.update, epoch=epoch,
            step=step, version=f"policy@{epoch}.{step}", learner_id=learner, artifact=artifact, probe=probe, trained_actions=1,
        )  # fmt: skip
        self.producer.publish_sync(POLICY_UPDATES, "policy", event)

    def adapter(self, version: str, artifact: Artifact) -> None:
        """An update of another policy, of its first epoch, without a probe: what it gives depends
        on the weights below it.
        """
        policy, step = version.partition("@")[0], int(version.rpartition(".")[2])
        claim = PolicyUpdate(
            event_id=derive_id("claim", policy), event_time=1, policy=policy, kind=UpdateKind.claim, epoch=1, step=0, learner_id=LEARNER,
            trained_actions=0,
        )  # fmt: skip
        event = PolicyUpdate(
            event_id=derive_id("update", version), event_time=1, policy=policy, kind=UpdateKind.update, epoch=1, step=step, version=version,
            learner_id=LEARNER, artifact=artifact, trained_actions=1,
        )  # fmt: skip
        for one in (claim, event):
            self.producer.publish_sync(POLICY_UPDATES, policy, one)

    def route(self, version: str | None) -> None:
        target = RouteTarget(policy="policy", version=version, weight=1.0)
        event = PolicyRoute(
            event_id=derive_id("route", str(version)),
            event_time=1,
            alias="policy",
            targets=(target,),
            reason="test",
            author="test",
        )
        self.producer.publish_sync(POLICY_ROUTES, "policy", event)

    def told(self) -> list[PolicyApplied]:
        """What the applier has written; nothing as long as a new topic has no leader."""
        with contextlib.suppress(LogUnavailable):
            return [
                r.event
                for r in read_all(self.settings, POLICY_APPLIED, self.codec)
                if isinstance(r.event, PolicyApplied)
            ]
        return []

    def wait_for(self, holds: Callable[[list[PolicyApplied]], bool]) -> list[PolicyApplied]:
        deadline = time.monotonic() + WAIT_S
        while not holds(events := self.told()):
            assert time.monotonic() < deadline, f"told: {events}\n{self.log.read_text()}"
            time.sleep(0.1)
        return events

    def wait_applied(
        self, version: str, times: int = 1, after: PolicyApplied | None = None
    ) -> PolicyApplied:
        def of(events: list[PolicyApplied]) -> list[PolicyApplied]:
            since = 0 if after is None else events.index(after)
            return [
                e
                for e in events[since:]
                if e.version == version and e.outcome is ApplyOutcome.applied
            ]

        return of(self.wait_for(lambda events: len(of(events)) >= times))[-1]

    def wait_failed(self, version: str) -> PolicyApplied:
        def of(events: list[PolicyApplied]) -> list[PolicyApplied]:
            return [e for e in events if e.version == version and e.outcome is ApplyOutcome.failed]

        return of(self.wait_for(lambda events: bool(of(events))))[-1]

    def serves(self, version: str) -> list[float]:
        """Log-probabilities of the engine, which must report this version."""

        async def ask() -> tuple[str, list[float]]:
            async with Engine(self.vllm.base_url) as engine:
                return await engine.weight_version(), await engine.prompt_logprobs(PROBE_IDS)

        reported, logprobs = asyncio.run(ask())
        assert reported == version
        return logprobs


@pytest.fixture
def bench(
    kafka: LocalKafka, vllm_tiny: LocalVllm, topic_prefix: str, tmp_path: Path
) -> Iterator[Bench]:
    bench = Bench(kafka, vllm_tiny, topic_prefix, tmp_path)
    yield bench
    bench.close()


def difference(one: list[float], other: list[float]) -> float:
    return float(np.abs(np.subtract(one, other)).mean())


def test_an_update_is_served_and_proved_and_the_newest_of_several_wins(
    bench: Bench, weights: list[Weights]
) -> None:
    first, second = weights
    bench.process.start()
    bench.claim(1)
    bench.update(1, 1, first.artifact(), first.probe())
    applied = bench.wait_applied("policy@1.1")
    served = bench.serves("policy@1.1")
    assert difference(served, first.logprobs) < 0.1
    assert difference(served, second.logprobs) > 0.5
    assert applied.probe_error is not None
    assert applied.backend == "vllm"

    bench.process.stop()
    bench.update(1, 2, first.artifact(), first.probe())
    bench.update(1, 3, second.artifact(), second.probe())
    bench.process.start()
    assert bench.wait_applied("policy@1.3").previous == "policy@1.1"
    assert difference(bench.serves("policy@1.3"), second.logprobs) < 0.1
    assert "policy@1.2" not in [event.version for event in bench.told()]


def test_a_damaged_file_and_a_wrong_probe_are_told_and_the_old_version_stays(
    bench: Bench, weights: list[Weights], tmp_path: Path
) -> None:
    first, second = weights
    damaged = tmp_path / "damaged.safetensors"
    content = second.path.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    bench.process.start()
    bench.claim(1)
    bench.update(1, 1, first.artifact(), second.probe())
    failed = bench.wait_failed("policy@1.1")
    assert "log-probabilities" in str(failed.error)
    # The base model is brought back. A new applier may have proved it before the update came, too.
    bench.wait_applied("policy@0.0", after=failed)
    assert difference(bench.serves("policy@0.0"), hugging_face_logprobs(tiny_model())) < 0.1

    bench.update(1, 2, first.artifact(), first.probe())
    bench.wait_applied("policy@1.2")
    artifact = Artifact(
        uri=damaged.as_uri(),
        sha256=second.sha256,
        size=damaged.stat().st_size,
        format=ArtifactFormat.full,
    )
    bench.update(1, 3, artifact, second.probe())
    assert "SHA-256" in str(bench.wait_failed("policy@1.3").error)
    assert difference(bench.serves("policy@1.2"), first.logprobs) < 0.1

    bench.update(1, 4, second.artifact(), first.probe())
    bench.wait_failed("policy@1.4")
    bench.wait_applied("policy@1.2", times=2)
    assert difference(bench.serves("policy@1.2"), first.logprobs) < 0.1
    assert [event.outcome for event in bench.told()].count(ApplyOutcome.failed) == 3


def test_a_superseded_learner_is_ignored_and_a_route_pins_a_version(
    bench: Bench, weights: list[Weights]
) -> None:
    first, second = weights
    bench.process.start()
    bench.claim(1)
    bench.update(1, 1, first.artifact(), first.probe())
    bench.wait_applied("policy@1.1")
    bench.claim(2, "learner-b")
    bench.claim(2, "learner-c")
    bench.update(1, 9, second.artifact(), second.probe())
    bench.update(2, 1, second.artifact(), second.probe(), "learner-c")
    bench.update(2, 2, second.artifact(), second.probe(), "learner-b")
    bench.wait_applied("policy@2.2")
    bench.route("policy@1.1")
    bench.wait_applied("policy@1.1", times=2)
    assert difference(bench.serves("policy@1.1"), first.logprobs) < 0.1
    bench.route(None)
    bench.wait_applied("policy@2.2", times=2)
    assert not {"policy@1.9", "policy@2.1"} & {event.version for event in bench.told()}


def test_no_key_or_value_of_old_weights_outlives_an_update_under_load(
    bench: Bench, weights: list[Weights]
) -> None:
    """While a request runs, vLLM keeps its prefix cache unless it is told to drop the request's
    blocks too.
    """
    first = weights[0]
    prompt = "a prompt that is long enough to fill several blocks of the cache, " * 8

    def post(path: str, body: dict[str, object]) -> urllib.request.Request:
        data = json.dumps(body).encode()
        return urllib.request.Request(
            bench.vllm.base_url + path, data, {"Content-Type": "application/json"}
        )

    def first_logprobs() -> list[float]:
        body: dict[str, object] = {
            "model": "policy",
            "prompt": prompt,
            "max_tokens": 4,
            "temperature": 0,
            "logprobs": 0,
        }
        with urllib.request.urlopen(post("/v1/completions", body), timeout=60) as reply:
            return json.load(reply)["choices"][0]["logprobs"]["token_logprobs"]

    bench.process.start()
    bench.claim(1)
    before = first_logprobs()
    long: dict[str, object] = {
        "model": "policy",
        "prompt": prompt,
        "max_tokens": 1000,
        "ignore_eos": True,
        "stream": True,
    }
    with urllib.request.urlopen(post("/v1/completions", long), timeout=60) as stream:
        stream.readline()
        bench.update(1, 1, first.artifact(), first.probe())
        bench.wait_applied("policy@1.1")
        under_load = first_logprobs()
        chunks = sum(line.startswith(b"data: {") for line in stream)
    assert chunks >= 900, "the request in flight was cut off"
    with urllib.request.urlopen(
        post("/reset_prefix_cache?reset_running_requests=true", {}), timeout=60
    ):
        anew = first_logprobs()
    assert difference(before, anew) > 0.1
    assert difference(under_load, anew) < 0.02


def test_an_update_that_an_applier_left_half_done_is_taken_up(
    bench: Bench, weights: list[Weights]
) -> None:
    async def leave_half_done() -> None:
        async with Engine(bench.vllm.base_url) as engine:
            await engine._call("POST", "/pause", params={"mode": "keep"})  # pyright: ignore[reportPrivateUsage]
            await engine._call("POST", "/start_weight_update")  # pyright: ignore[reportPrivateUsage]

    asyncio.run(leave_half_done())
    bench.claim(1)
    bench.update(1, 1, weights[0].artifact(), weights[0].probe())
    bench.process.start()
    bench.wait_applied("policy@1.1")
    assert difference(bench.serves("policy@1.1"), weights[0].logprobs) < 0.1


@contextlib.contextmanager
def traffic(bench: Bench, folder: Path) -> Generator[list[str | None]]:
    """Agents that call through a gateway all the time, whether the engine is there or not: the
    versions of the answers, as they come.
    """
    versions: list[str | None] = []
    over = threading.Event()

    async def agent(gateway: Gateway) -> None:
        body = {"model": "policy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        while not over.is_set():
            async with gateway.post("/v1/chat/completions", body) as response:
                if response.status == 200:
                    versions.append(response.headers.get("x-fulgurite-version"))
            await asyncio.sleep(0.01)

    async def run() -> None:
        async with running_gateway(
            bench.settings, bench.vllm.base_url, folder, make_topics=False
        ) as gateway:
            await asyncio.gather(*(agent(gateway) for _ in range(3)))
            answered = [
                call for call in await gateway.calls() if call.outcome is CallOutcome.success
            ]
            versions.extend(
                version for call in answered for version in (call.version_first, call.version_last)
            )

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        until(lambda: len(versions) > 3)
        yield versions
    finally:
        over.set()
        thread.join()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_restarted_engine_is_brought_back_with_its_adapters(
    bench: Bench, weights: list[Weights], tmp_path: Path
) -> None:
    async def adapted() -> list[float]:
        async with Engine(bench.vllm.base_url) as engine:
            assert await engine.adapters() == ["writer@1.1"]
            return await engine.prompt_logprobs(PROBE_IDS, "writer@1.1")

    bench.process.start()
    bench.claim(1)
    bench.update(1, 1, weights[0].artifact(), weights[0].probe())
    before = bench.wait_applied("policy@1.1")
    bench.adapter("writer@1.1", Adapter(tmp_path / "adapter", 3).artifact())
    bench.wait_applied("writer@1.1")
    at_first = asyncio.run(adapted())
    assert difference(at_first, weights[0].logprobs) > 0.3
    with traffic(bench, tmp_path) as versions:
        bench.vllm.process.kill()
        restarted = len(versions)
        bench.vllm.start().wait_ready()
        after = bench.wait_applied("policy@1.1", times=2)
        until(lambda: len(versions) > restarted + 3)
    assert set(versions) == {"policy@1.1"}, "no call met the base weights"
    assert after.engine_id != before.engine_id
    assert after.previous == "policy@0.0"
    assert difference(bench.serves("policy@1.1"), weights[0].logprobs) < 0.1
    bench.wait_applied("writer@1.1", times=2)
    assert difference(asyncio.run(adapted()), at_first) < 0.02
    bench.process.stop()
    asyncio.run(emptied(bench.vllm))
