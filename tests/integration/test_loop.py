"""The whole loop on real engines, small: agents → gateway → Kafka → episodes → rewards → verl → new
weights, served and accounted for.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from typer.testing import CliRunner

from fulgurite.avro.codec import Codec
from fulgurite.enums import ApplyOutcome, CallOutcome, LedgerTerm
from fulgurite.events import LedgerEntry, LlmCall, PolicyApplied, PolicyUpdate, Trajectory
from fulgurite.ids import action_id
from fulgurite.topics import POLICY_APPLIED, POLICY_UPDATES, TRAINING_LEDGER, TRAJECTORIES
from services.cli.ledger import read_books
from services.cli.main import app
from services.common.kafka.consumer import read_all
from services.common.kafka.logged_calls import read_calls
from services.common.processes.process import ChildProcess
from services.common.processes.supervisor import SupervisedProcess
from services.local_stack.batch_scheduling import batch_command
from services.local_stack.local_stack import LocalStack, StackOptions
from services.local_stack.model import tiny_model
from tests.integration.command_line import PROJECT, fulgurite_command, run_fulgurite

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

AGENT = """
import json, os
from openai import OpenAI
reply = OpenAI().chat.completions.create(
    model="policy", messages=[{"role": "user", "content": json.loads(os.environ["TASK"])["question"]}], max_tokens=24)
print(reply.choices[0].message.content)
"""

REWARDS = """
def vowels(episode):
    return float(sum(letter in "aeiou" for letter in episode.final_text().lower()))

def length(episode):
    return float(len(episode.final_text()))
"""

SETTINGS = {
    "FULGURITE__BATCH__GROUPS": "2",
    # A random model's words rarely end by themselves.
    "FULGURITE_REWARDER_FAILURE_POLICIES": '{"truncated": "train"}',
    "OMP_NUM_THREADS": "1",
}


def _environment(stack: LocalStack) -> dict[str, str]:
    return {
        **os.environ,
        **stack.environment,
        **SETTINGS,
        "PYTHONPATH": str(PROJECT),
    }


def run_agents(stack: LocalStack, folder: Path, updates: int = 2) -> dict[str, Any]:
    """`fulgurite run`, as a user would, until so many versions are served; its summary."""
    (folder / "agent.py").write_text(AGENT)
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "tasks.jsonl").write_text(
        "".join(json.dumps({"question": f"question {n}"}) + "\n" for n in range(12))
    )
    run_fulgurite(
        *["run", "--tasks", "tasks.jsonl", "-n", "4", "--max-ahead", "2"],
        *["--updates", str(updates), "--reward", "rewards.py:vowels", "--preload", "openai"],
        *["--results", "results.json", "--json", "--", sys.executable, "agent.py"],
        environment=_environment(stack),
        folder=folder,
    )
    return json.loads((folder / "results.json").read_text())


def served_version(stack: LocalStack) -> str | None:
    """The version that answers a call with a plain key."""
    request = urllib.request.Request(
        f"{stack.gateway_url}/v1/chat/completions",
        json.dumps(
            {"model": "policy", "messages": [{"role": "user", "content": "?"}], "max_tokens": 4}
        ).encode(),
        {"Authorization": f"Bearer {stack.secrets.api_key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return reply.headers["x-fulgurite-version"]


def versions_of(stack: LocalStack, policy: str) -> dict[str, PolicyUpdate]:
    """What `policy.updates` holds of a policy, by version."""
    events = (record.event for record in read_all(stack.kafka, POLICY_UPDATES, Codec()))
    return {
        e.version: e
        for e in events
        if isinstance(e, PolicyUpdate) and e.policy == policy and e.version is not None
    }


def entries(stack: LocalStack) -> list[LedgerEntry]:
    """What `training.ledger` holds."""
    return [
        r.event
        for r in read_all(stack.kafka, TRAINING_LEDGER, Codec())
        if isinstance(r.event, LedgerEntry)
    ]


def trained_into(stack: LocalStack, version: str) -> set[str]:
    """What `training.ledger` says of a version."""
    return {
        action
        for e in entries(stack)
        if (e.term, e.version) == (LedgerTerm.trained, version)
        for action in e.actions
    }


def learn_from_a_replay(stack: LocalStack, folder: Path) -> None:
    """Other rewards and credit for the same calls, and a policy of its own that learns from them,
    beside the live one.
    """
    options = "--from-beginning --reward rewards.py:length --credit last_step"
    done = run_fulgurite(
        *("replay", *options.split(), "--into", "trajectories.v2", "--json"),
        environment=_environment(stack),
        folder=folder,
    )
    report = json.loads(done.stdout)
    assert (report["left_out"], report["unmet"], report["judged"] > 0) == ([], [], True)
    argv = fulgurite_command(
        *["train", "--topic", "trajectories.v2", "--policy", "policy-v2", "--rows-of", "policy"],
        *("--model", str(tiny_model()), "--data-dir", str(folder / "v2")),
    )
    with ChildProcess(argv, folder / "train.log", env=_environment(stack), cwd=folder) as learner:
        deadline = time.monotonic() + 240
        while "policy-v2@1.2" not in versions_of(stack, "policy-v2"):
            running = learner.is_running and time.monotonic() < deadline
            assert running, learner.log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)
        learner.terminate()
        assert learner.wait(60) == 0


def lineage(stack: LocalStack, *arguments: str) -> Any:
    """The command, in this process: it has seconds of imports behind it."""
    done = CliRunner().invoke(app, ["lineage", *arguments, "--json"], env=_environment(stack))
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def check_lineage(stack: LocalStack) -> None:
    """The command says what `policy.updates` and `training.ledger` say."""
    calls = {
        r.event.call_id: r.event
        for r in read_calls(stack.kafka, Codec())
        if isinstance(r.event, LlmCall)
    }
    for version, update in (versions_of(stack, "policy") | versions_of(stack, "policy-v2")).items():
        behind = lineage(stack, version)
        actions = {
            action: group for group, actions in behind["groups"].items() for action in actions
        }
        assert actions.keys() == trained_into(stack, version)
        assert len(actions) == update.trained_actions > 0
        assert {action: calls[action.partition("#")[0]].group_id for action in actions} == actions
        assert (behind["parent"], behind["topic"]) == (update.parent_version, update.topic)
    # Of a replayed topic too, each action of a group that was settled has one outcome.
    mine = [e for e in entries(stack) if e.policy == "policy-v2"]
    settled = {entry.group_id for entry in mine}
    topic = msgspec.structs.replace(TRAJECTORIES, name="trajectories.v2")
    rows = [
        r.event
        for r in read_all(stack.kafka, topic, Codec())
        if isinstance(r.event, Trajectory) and r.event.group_id in settled
    ]
    offered = sorted(
        action_id(action.call_id, action.choice)
        for row in rows
        for action in row.actions
        if action.loss
    )
    assert sorted(action for entry in mine for action in entry.actions) == offered
    for policy in ("policy", "policy-v2"):
        action = min(trained_into(stack, f"{policy}@1.1"))
        outcome = lineage(stack, "--call", action.partition("#")[0])
        assert outcome["trained"] == {
            action: [
                e.version
                for e in entries(stack)
                if e.term is LedgerTerm.trained and action in e.actions
            ]
        }
        assert f"{policy}@1.2" in outcome["inherited"]


def check_scheduling(stack: LocalStack) -> None:
    """The gateway and all its threads give way to the model server on the same cores."""
    (gateway,) = [
        process
        for process in psutil.Process().children(recursive=True)
        if "services.gateway.main" in process.cmdline()
        and process.environ()["FULGURITE_GATEWAY_URL"] == stack.gateway_url
    ]
    expected = os.SCHED_BATCH if batch_command() else os.SCHED_OTHER
    assert {os.sched_getscheduler(thread.id) for thread in gateway.threads()} == {expected}


def test_the_loop_closes(tmp_path: Path) -> None:
    ended: list[str] = []

    def note_end(process: SupervisedProcess, code: int) -> None:
        log = process.spec.log.read_text(errors="replace")
        ended.append(f"{process.name} ended with {code}:\n{log[-3000:]}")

    with LocalStack(
        StackOptions(data=tmp_path / "data", model=tiny_model(), environment=SETTINGS),
        on_exit=note_end,
    ) as stack:
        check_scheduling(stack)
        summary = run_agents(stack, tmp_path)
        assert not ended, "\n".join(ended)
        assert summary["updates"] >= 2
        applied = [
            r.event
            for r in read_all(stack.kafka, POLICY_APPLIED, Codec())
            if isinstance(r.event, PolicyApplied)
        ]
        assert {"policy@1.1", "policy@1.2"} <= {
            event.version for event in applied if event.outcome is ApplyOutcome.applied
        }
        calls = [r.event for r in read_calls(stack.kafka, Codec()) if isinstance(r.event, LlmCall)]
        assert all(
            call.prompt_token_ids and call.choices[0].logprobs
            for call in calls
            if call.outcome is CallOutcome.success
        )
        assert "policy@1.1" in {call.version_first for call in calls}
        books = read_books(stack.kafka)
        assert books.remainder == 0
        assert books.actions == len(calls)
        assert books.terms["trained"] > 0

    # The topics are kept, and a vLLM that starts anew, with the base model, is brought to the
    # newest version.
    with LocalStack(
        StackOptions(data=tmp_path / "data", model=tiny_model(), environment=SETTINGS)
    ) as stack:
        deadline = time.monotonic() + 120
        while served_version(stack) != summary["version"]:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert read_books(stack.kafka).remainder == 0
        learn_from_a_replay(stack, tmp_path)
        check_lineage(stack)
        assert read_books(stack.kafka).remainder == 0, (
            "what was learned elsewhere is no part of the live policy's books"
        )
        assert (served_version(stack) or "").startswith("policy@"), "nor is it served in its place"


@pytest.mark.xdist_group("ray")
def test_the_loop_closes_with_several_workers(tmp_path: Path) -> None:
    workers = {
        **SETTINGS,
        "FULGURITE__ENGINE__PLACEMENT": "ray",
        "FULGURITE__ENGINE__WORKERS_PER_NODE": "2",
    }
    with LocalStack(
        StackOptions(data=tmp_path / "data", model=tiny_model(), environment=workers)
    ) as stack:
        assert run_agents(stack, tmp_path, updates=1)["updates"] >= 1
        version = versions_of(stack, "policy")["policy@1.1"]
        assert version.artifact is not None
        assert version.artifact.uri.endswith("/model.safetensors.index.json")
        assert read_books(stack.kafka).remainder == 0
        assert read_books(stack.kafka).terms["trained"] > 0
