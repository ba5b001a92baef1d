"""`fulgurite eval` and `fulgurite pin` against a real gateway and a real Kafka: an unchanged agent,
answered by several models in turn.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fulgurite.avro.codec import Codec
from fulgurite.enums import ApplyOutcome
from fulgurite.events import PolicyApplied
from fulgurite.topics import POLICY_APPLIED
from services.common.kafka.producer import EventProducer
from services.common.processes.process import ChildProcess
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub
from tests.integration.test_runner import ASKS, ROOT, environment_of

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

REWARDS = """
def by_policy(episode):
    number = int(episode.task["reference"])
    return number % 2 if episode.calls[0].policy else 1.0
"""
TASKS = [{"question": f"question {number}", "reference": str(number)} for number in range(4)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    kafka: LocalKafka, stub: Stub, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Gateway]:
    """It serves `policy@0.0` as `policy`, and another model as `other`."""
    settings = kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")
    folder = tmp_path_factory.mktemp("gateway")
    upstreams = json.dumps({"other": {"base_url": stub.url}})
    async with running_gateway(settings, stub.url, folder, FULGURITE_UPSTREAMS=upstreams) as run:
        yield run


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def aggregator(
    gateway: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[None]:
    """Turns statuses into episodes."""
    folder = tmp_path_factory.mktemp("aggregator")
    process = ChildProcess(
        [sys.executable, "-m", "services.aggregator.main"],
        folder / "aggregator.log",
        env=environment_of(gateway, FULGURITE_DATA_DIR=str(folder)),
        cwd=ROOT,
    )
    yield
    await asyncio.to_thread(process.end, 20)


async def fulgurite(gateway: Gateway, folder: Path, *words: str, code: int = 0) -> str:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-P", "-m", "services.cli.main", *words],
        cwd=folder,
        env=environment_of(gateway, FULGURITE_DATA_DIR=str(folder)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout + (done.stderr if code else "")


async def test_models_answer_the_same_tasks_in_place_of_the_agents_own(
    gateway: Gateway, stub: Stub, aggregator: None, tmp_path: Path
) -> None:
    stub.reset(version="policy@1.4")
    producer = EventProducer(gateway.kafka, Codec(), "test")
    applied = PolicyApplied(
        event_id="a",
        event_time=1,
        policy="policy",
        backend="vllm",
        engine_id="e",
        version="policy@1.4",
        outcome=ApplyOutcome.applied,
        seconds=0.1,
    )
    await producer.publish(POLICY_APPLIED, "policy", applied)
    producer.close()
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "agent.py").write_text(ASKS)
    (tmp_path / "held-out.jsonl").write_text("\n".join(map(json.dumps, TASKS)))

    models = ("--model", "policy@1.4", "--model", "other")
    found: dict[str, Any] = json.loads(
        await fulgurite(
            gateway, tmp_path, "eval", *models, "--tasks", "held-out.jsonl",
            "--reward", "rewards.py:by_policy", "--json", "--", "python", "agent.py",
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


async def test_what_cannot_be_run_is_refused(
    gateway: Gateway, aggregator: None, tmp_path: Path
) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "held-out.jsonl").write_text(json.dumps(TASKS[0]))
    assert "--from-log" in await fulgurite(gateway, tmp_path, "eval", "--model", "policy", code=1)
    missing = await fulgurite(
        gateway, tmp_path, "eval", "--model", "policy@7.7", "--tasks", "held-out.jsonl",
        "--reward", "rewards.py:by_policy", "--", "python", "agent.py", code=1,
    )  # fmt: skip
    assert "No backend serves this version now" in missing


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
