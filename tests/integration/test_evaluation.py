"""`fulgurite eval` and `fulgurite pin` against a real gateway and a real Kafka: an unchanged agent,
answered by several models in turn.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fulgurite.avro.codec import Codec
from fulgurite.enums import ApplyOutcome, UpdateKind
from fulgurite.events import Event, PolicyApplied, PolicyUpdate, RouteTarget
from fulgurite.topics import POLICY_APPLIED, POLICY_UPDATES, Topic
from services.common.kafka.producer import EventProducer
from services.common.policies.route_log import last_routes, write_route
from services.local_stack.kafka_local import LocalKafka
from tests.integration.command_line import fulgurite_command, run_fulgurite
from tests.integration.gateway_process import Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub, running_stub
from tests.integration.test_runner import ASKS, environment_of, running_aggregator

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

REWARDS = """
def score(episode):
    number = int(episode.task["reference"])
    call = episode.calls[0]
    return number % 2 if call.policy and call.version_first == "policy@1.4" else 1.0
"""
TASKS = [{"question": f"question {number}", "reference": str(number)} for number in range(4)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def west() -> AsyncGenerator[Stub]:
    """A second backend of the policy."""
    async with running_stub() as backend:
        backend.reset(version="policy@1.5")
        yield backend


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    kafka: LocalKafka, stub: Stub, west: Stub, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Gateway]:
    """Its two backends serve `policy@1.4` and `policy@1.5`; it has another model, `other`."""
    settings = kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")
    folder = tmp_path_factory.mktemp("gateway")
    upstreams = json.dumps({"other": {"base_url": stub.url}})
    stub.reset(version="policy@1.4")
    backends = f"east={stub.url},west={west.url}"
    async with running_gateway(
        settings, backends, folder, FULGURITE_UPSTREAMS=upstreams
    ) as running:
        for backend, version in (("east", "policy@1.4"), ("west", "policy@1.5")):
            await publish(running, POLICY_APPLIED, applied(backend, version))
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def aggregator(
    gateway: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[None]:
    async with running_aggregator(gateway, tmp_path_factory.mktemp("aggregator")):
        yield


def applied(backend: str, version: str) -> PolicyApplied:
    return PolicyApplied(
        event_id=backend,
        event_time=1,
        policy="policy",
        backend=backend,
        engine_id="e",
        version=version,
        outcome=ApplyOutcome.applied,
        seconds=0.1,
    )


def update(step: int, kind: UpdateKind = UpdateKind.update) -> PolicyUpdate:
    return PolicyUpdate(
        event_id=f"{kind}{step}",
        event_time=1,
        policy="policy",
        kind=kind,
        epoch=1,
        step=step,
        version=f"policy@1.{step}" if kind is UpdateKind.update else None,
        learner_id="l",
        trained_actions=1,
    )


async def publish(gateway: Gateway, topic: Topic, *events: Event) -> None:
    producer = EventProducer(gateway.kafka, Codec(), "test")
    for event in events:
        await producer.publish(topic, "policy", event)
    producer.close()


def write_task_files(folder: Path) -> None:
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "agent.py").write_text(ASKS)
    (folder / "held-out.jsonl").write_text("\n".join(map(json.dumps, TASKS)))


def started(command: list[str], gateway: Gateway, folder: Path) -> subprocess.Popen[bytes]:
    """A process whose output goes to the file `output`."""
    with (folder / "output").open("w") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment_of(gateway, FULGURITE_DATA_DIR=str(folder)),
            stdout=output,
            stderr=subprocess.STDOUT,
        )


async def fulgurite(gateway: Gateway, folder: Path, *words: str, code: int = 0) -> str:
    """Run a command as a user would; what it printed, with what it said of a failure."""
    done = await asyncio.to_thread(
        run_fulgurite,
        *words,
        environment=environment_of(gateway, FULGURITE_DATA_DIR=str(folder)),
        folder=folder,
        code=code,
        timeout_s=120,
    )
    return done.stdout + (done.stderr if code else "")


async def test_models_answer_the_same_tasks_in_place_of_the_agents_own(
    gateway: Gateway, stub: Stub, aggregator: None, tmp_path: Path
) -> None:
    write_task_files(tmp_path)
    models = ("--model", "policy@1.4", "--model", "other")
    found: dict[str, Any] = json.loads(
        await fulgurite(
            gateway, tmp_path, "eval", *models, "--tasks", "held-out.jsonl",
            "--reward", "rewards.py:score", "--json", "--", "python", "agent.py",
        )
    )  # fmt: skip
    version, other = found["models"]
    assert (version["model"], version["mean"]["mean"], version["tasks"]) == ("policy@1.4", 0.5, 4)
    assert (other["mean"]["mean"], other["unscored"], other["others"]) == (1.0, 0, 0)
    (pair,) = found["pairs"]
    assert pair["difference"]["estimate"]["mean"] == 0.5
    assert (pair["difference"]["better"], pair["difference"]["worse"]) == (2, 0)
    assert pair["adjusted_p"] == 0.5
    assert {request["model"] for request in stub.requests} == {"policy", "other"}

    again = json.loads(await fulgurite(gateway, tmp_path, "eval", "--from-log", *models, "--json"))
    assert again == found
    shown = await fulgurite(gateway, tmp_path, "eval", "--from-log")
    assert "policy@1.4" in shown

    refused = await fulgurite(
        gateway, tmp_path, "policy", "promote", "policy@0.0", "--unless-worse-than", "policy@1.4",
        code=3,
    )  # fmt: skip
    assert "no task in common" in refused


async def test_new_versions_are_compared_with_the_promoted_one_until_stopped(
    gateway: Gateway, aggregator: None, tmp_path: Path
) -> None:
    write_task_files(tmp_path)
    claim = update(0, UpdateKind.claim)
    await publish(gateway, POLICY_UPDATES, claim, update(4), update(5))
    target = RouteTarget(policy="policy", version="policy@1.4", weight=1.0)
    await asyncio.to_thread(write_route, gateway.kafka, "prod", (target,), "the first")
    command = fulgurite_command(
        "eval", "--every", "2", "--promote", "prod", "--margin", "1", "--min-tasks", "4",
        "--tasks", "held-out.jsonl", "--reward", "rewards.py:score", "--", "python", "agent.py",
    )  # fmt: skip
    process = started(command, gateway, tmp_path)
    try:
        while "is routed to policy@1.5" not in (tmp_path / "output").read_text():
            assert process.poll() is None, (tmp_path / "output").read_text()
            await asyncio.sleep(0.1)
        process.send_signal(signal.SIGINT)
        # Python ends by the signal itself where it came in code that was run from a string, such as
        # a dataclass being made; a shell sees 130 either way.
        assert await asyncio.to_thread(process.wait, 60) in (130, -signal.SIGINT)
    finally:
        process.kill()
    route = (await asyncio.to_thread(last_routes, gateway.kafka))["prod"]
    (promoted,) = route.targets
    assert promoted.version == "policy@1.5"
    assert "0.500" in route.reason
    assert "against policy@1.4 on held-out tasks" in route.reason
    assert route.previous == (target,)


async def test_what_cannot_be_run_is_refused(
    gateway: Gateway, aggregator: None, tmp_path: Path
) -> None:
    write_task_files(tmp_path)
    assert "--from-log" in await fulgurite(gateway, tmp_path, "eval", "--model", "policy", code=1)
    missing = await fulgurite(
        gateway, tmp_path, "eval", "--model", "policy@7.7", "--tasks", "held-out.jsonl",
        "--reward", "rewards.py:score", "--", "python", "agent.py", code=1,
    )  # fmt: skip
    assert "No backend serves this version now" in missing
    same = await fulgurite(
        gateway, tmp_path, "eval", "--every", "1", "--promote", "policy", "--tasks",
        "held-out.jsonl", "--reward", "rewards.py:score", "--", "python", "agent.py", code=1,
    )  # fmt: skip
    assert "another alias" in same


async def test_a_recorded_rollout_becomes_a_task(gateway: Gateway, tmp_path: Path) -> None:
    group = await gateway.declare(task={"question": "1+1"}, mode="train")
    rollout = group["rollouts"][0]["rollout_id"]
    shown = await fulgurite(gateway, tmp_path, "pin", rollout, "--reference", "2")
    assert "train" in shown
    assert "already in" in await fulgurite(gateway, tmp_path, "pin", rollout, "--reference", "2")
    lines = (tmp_path / "held-out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"question": "1+1", "reference": "2"}]
    status, reply = await gateway.json(
        "/v1/chat/completions",
        {"model": "policy", "messages": [{"role": "user", "content": "hi"}]},
    )
    assert status == 200
    await gateway.calls()
    await fulgurite(gateway, tmp_path, "pin", reply["id"], "--tasks", "live.jsonl")
    (live,) = (tmp_path / "live.jsonl").read_text().splitlines()
    assert json.loads(live) == {"messages": [{"role": "user", "content": "hi"}]}
    await fulgurite(gateway, tmp_path, "pin", "nobody", code=1)


async def test_nothing_but_json_is_printed_where_a_version_is_loaded_first(
    gateway: Gateway, west: Stub, aggregator: None, tmp_path: Path
) -> None:
    write_task_files(tmp_path)
    west.reset(version="policy@1.4")
    await publish(gateway, POLICY_UPDATES, update(0, UpdateKind.claim), update(4))
    await publish(gateway, POLICY_APPLIED, applied("west", "policy@1.4"))
    found = json.loads(
        await fulgurite(
            gateway, tmp_path, "eval", "--model", "policy@1.4", "--load", "--json", "--tasks",
            "held-out.jsonl", "--reward", "rewards.py:score", "--", "python", "agent.py",
        )
    )  # fmt: skip
    assert [one["model"] for one in found["models"]] == ["policy@1.4"]
