"""`fulgurite tune` in a process of its own against a real gateway and a real Kafka, with a model
whose answers depend on its prompt.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fulgurite.enums import Mode, PromptKind, StatusKind
from fulgurite.events import AgentStatus, Event, PromptScore, PromptUpdate
from fulgurite.topics import AGENT_STATUS, PROMPT_UPDATES, Topic
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub
from tests.integration.test_evaluation import fulgurite
from tests.integration.test_runner import environment_of, running_aggregator

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

ASKS = """
import json, os, urllib.request
question = json.loads(os.environ["TASK"])["question"]
messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": question}]
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    json.dumps({"model": "policy", "messages": messages}).encode(),
    {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"},
)
urllib.request.urlopen(request).read()
"""
REWARDS = """
def score(episode):
    return float(episode.final_text() == "yes")
"""
HELPS = "train question number 1"


class Model:
    """Says yes to two training tasks, and where its prompt shows how. As the reflection model it
    first copies a task.
    """

    def __init__(self) -> None:
        self.reflections: list[str] = []

    def words_of(self, body: dict[str, Any]) -> list[str]:
        """What it answers."""
        messages = body["messages"]
        asked = messages[-1]["content"]
        if "new instruction" in asked:
            self.reflections.append(asked)
            text = HELPS if len(self.reflections) == 1 else "Answer. Say yes."
            return ["```\n", text, "\n```"]
        shown = [message["content"] for message in messages[:-1]]
        helped = HELPS in shown or "Say yes." in shown[0]
        knows = asked in (HELPS, "train question number 2")
        return ["yes"] if knows or (helped and not asked.endswith("7")) else ["no"]


MODEL = Model()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    kafka: LocalKafka, stub: Stub, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Gateway]:
    settings = kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")
    folder = tmp_path_factory.mktemp("gateway")
    stub.reset(words_of=MODEL.words_of)
    upstreams = json.dumps({"teacher": {"base_url": stub.url}})
    async with (
        running_gateway(settings, stub.url, folder, FULGURITE_UPSTREAMS=upstreams) as running,
        running_aggregator(running, folder),
    ):
        yield running


def start(
    gateway: Gateway, folder: Path, *options: str, **environment: str
) -> subprocess.Popen[str]:
    (folder / "agent.py").write_text(ASKS)
    (folder / "rewards.py").write_text(REWARDS)
    for name, count in (("train", 4), ("validation", 8), ("heldout", 2)):
        tasks = [{"question": f"{name} question number {number}"} for number in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    words = (
        "tune", "--alias", "policy", "--tasks", "train.jsonl", "--validation", "validation.jsonl",
        "--held-out", "heldout.jsonl", "--reward", "rewards.py:score", "--deadline", "60",
        "--concurrency", "4", *options, "--", "python", "agent.py",
    )  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "services.cli.main", *words],
        cwd=folder,
        env=environment_of(gateway, FULGURITE_DATA_DIR=str(folder), **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


async def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, errors = await asyncio.to_thread(process.communicate, None, 240)
    assert process.returncode == code, errors + output
    return " ".join((output + errors).split())


async def events(gateway: Gateway, topic: Topic = PROMPT_UPDATES) -> list[Event]:
    records = await asyncio.to_thread(lambda: list(read_all(gateway.kafka, topic, make_codec())))
    return [record.event for record in records if record.event is not None]


async def scores(gateway: Gateway) -> list[PromptScore]:
    return [event for event in await events(gateway) if isinstance(event, PromptScore)]


async def test_demonstrations_are_found_across_a_kill(gateway: Gateway, tmp_path: Path) -> None:
    options = ("--slots", "1", "--pool", "2", "--candidates", "2", "--promote")
    process = start(gateway, tmp_path, *options)
    while len(await scores(gateway)) < 15:
        assert process.poll() is None, process.communicate()
        await asyncio.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(process.communicate)
    logged = await scores(gateway)

    output = await finish(start(gateway, tmp_path, *options))
    assert "goes on: " in output
    assert "is in force: 0.875" in output
    found = await scores(gateway)
    assert [event.event_id for event in found[: len(logged)]] == [one.event_id for one in logged]
    assert len({event.event_id for event in found}) == len(found)
    assert len(found) == 4 + 3 * 8 + 2 * 8, "training tasks, three versions, and the comparison"
    # What was scored before the kill was not declared again.
    declared = Counter(
        (one.declaration.task, one.declaration.prompt_version)
        for one in await events(gateway, AGENT_STATUS)
        if isinstance(one, AgentStatus) and one.kind is StatusKind.declared and one.declaration
    )
    lost = sum(declared.values()) - len(found)
    assert 0 <= lost <= 8, "what ran when it was killed"
    assert all(one.cost.calls == 1 for one in found)
    updates = [event for event in await events(gateway) if isinstance(event, PromptUpdate)]
    candidates = [one for one in updates if one.kind is PromptKind.candidate]
    assert len(candidates) == 2
    promoted = [one for one in updates if one.kind is PromptKind.promoted]
    best = next(one for one in candidates if one.version == promoted[0].version)
    assert [one.content for one in best.demonstrations] == [HELPS, "yes"]
    [example] = best.examples
    assert (await gateway.call(example)).mode is Mode.val

    again = await finish(start(gateway, tmp_path, *options))
    assert "is in force: 0.875" in again
    assert len(await scores(gateway)) == len(found), "a finished tuning runs nothing"


async def test_gepa_climbs_by_a_model_behind_the_gateway(gateway: Gateway, tmp_path: Path) -> None:
    rollback = ("prompts", "rollback", "--alias", "policy", "--to", "none")
    await fulgurite(gateway, tmp_path, *rollback)
    before = len(await scores(gateway))
    options = (
        "--method", "gepa", "--reflection-model", "teacher", "--candidates", "1", "--minibatch", "4",
    )  # fmt: skip
    output = await finish(start(gateway, tmp_path, *options))
    assert f"refused: it copies a task: '{HELPS}' stands in the field 'question'" in output
    assert "is proposed (--promote was not given): 0.875" in output
    found = (await scores(gateway))[before:]
    assert len(found) == 2 * 4 + 2 * 8 + 2 * 8, "two versions: training, validation, comparison"
    updates = [event for event in await events(gateway) if isinstance(event, PromptUpdate)]
    [reflected] = [one for one in updates if one.system == "Answer. Say yes."]
    assert reflected.kind is PromptKind.candidate
    assert reflected.cost is not None
    assert reflected.cost.calls == 1
    assert len(MODEL.reflections) == 2
    assert not any("validation question" in asked for asked in MODEL.reflections)
    [asked] = {call.alias for call in await gateway.calls() if call.agent == "tuner"}
    assert asked == "teacher"
    promote = ("prompts", "promote", "--alias", "policy", reflected.version or "")
    assert "for rollouts that begin after" in await fulgurite(gateway, tmp_path, *promote)


async def test_wrong_input_ends_with_what_to_do(gateway: Gateway, tmp_path: Path) -> None:
    output = await finish(start(gateway, tmp_path, "--least-reward", "2"), 1)
    assert "no rollout of the 4 training tasks earned 2" in output
    gepa = ("--method", "gepa", "--reflection-model", "nobody")
    output = await finish(start(gateway, tmp_path, *gepa), 1)
    assert "the reflection model 'nobody' refused" in output
    (tmp_path / "broken.py").write_text("def score(episode): return 1 / 0")
    output = await finish(
        start(gateway, tmp_path, "--reward", "broken=broken.py:score", "--seed", "1"), 1
    )
    assert "division by zero" in output


async def test_ctrl_c_stops_it_and_its_agents(gateway: Gateway, tmp_path: Path) -> None:
    before = len(await scores(gateway))
    process = start(gateway, tmp_path, "--seed", "2")
    while len(await scores(gateway)) == before:
        assert process.poll() is None, process.communicate()
        await asyncio.sleep(0.1)
    process.send_signal(signal.SIGINT)
    await finish(process, 130)


async def test_ctrl_c_does_not_wait_for_the_reflection_model(
    gateway: Gateway, tmp_path: Path
) -> None:
    is_asked = asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_asked.set()
        await reader.read(-1)
        writer.close()

    async with await asyncio.start_server(never_answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        process = start(
            gateway, tmp_path, "--method", "gepa", "--reflection-model", "silent",
            FULGURITE_TUNER_BASE_URL=f"http://127.0.0.1:{port}/v1",
        )  # fmt: skip
        while not is_asked.is_set():
            assert process.poll() is None, process.communicate()
            await asyncio.sleep(0.1)
        process.send_signal(signal.SIGINT)
        await finish(process, 130)
