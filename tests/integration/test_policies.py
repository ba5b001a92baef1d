"""Several policies of one run on one vLLM: an adapter and a learner each, a frozen one among them."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.enums import ApplyOutcome, ArtifactFormat, FilterReason, LedgerTerm
from fulgurite.events import LedgerEntry, LlmCall, PolicyApplied, PolicyUpdate
from fulgurite.topics import POLICY_APPLIED, POLICY_UPDATES, TRAINING_LEDGER
from fulgurite.versions import parse_version
from services.cli.ledger import read_books
from services.common.kafka.consumer import read_all
from services.common.kafka.logged_calls import read_calls
from services.local_stack.local_stack import LocalStack, StackOptions
from services.local_stack.model import tiny_model
from tests.integration.command_line import run_fulgurite

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

RUN = """
[batch]
groups = 2

[optimizer]
lr = 1e-3

[[policy]]
name = "writer"
weights = {train = "lora", rank = 8}

[[policy]]
name = "critic"
weights = {train = "lora", rank = 4, targets = ["q_proj", "v_proj"]}
[policy.optimizer]
lr = 2e-3

[[policy]]
name = "reader"
frozen = true
"""

AGENT = """
import json, os
from openai import OpenAI
client = OpenAI()
text = json.loads(os.environ["TASK"])["question"]
for role in ("reader", "writer", "critic"):
    reply = client.chat.completions.create(
        model=role, messages=[{"role": "user", "content": text}], max_tokens=16)
    text = reply.choices[0].message.content or "?"
print(text)
"""

REWARDS = """
def vowels(episode):
    return float(sum(letter in "aeiou" for letter in episode.final_text().lower()))
"""

SETTINGS = {
    # A random model's words rarely end by themselves.
    "FULGURITE_REWARDER_FAILURE_POLICIES": '{"truncated": "train"}',
    "OMP_NUM_THREADS": "1",
}
TRAINED = {"writer", "critic"}
WAIT_S = 300.0


def run_agents(stack: LocalStack, folder: Path) -> None:
    """`fulgurite run` until the writer, whose name the stack exports, has a version."""
    (folder / "agent.py").write_text(AGENT)
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "tasks.jsonl").write_text(
        "".join(json.dumps({"question": f"question {n}"}) + "\n" for n in range(12))
    )
    run_fulgurite(
        *["run", "--tasks", "tasks.jsonl", "-n", "4", "--max-ahead", "2", "--updates", "2"],
        *["--reward", "rewards.py:vowels", "--preload", "openai", "--json"],
        *("--", sys.executable, "agent.py"),
        environment={**os.environ, **SETTINGS, **stack.exports},
        folder=folder,
    )


def answering_version(stack: LocalStack, model: str) -> str | None:
    """The version that answers a call with a plain key."""
    body = {"model": model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 4}
    request = urllib.request.Request(
        f"{stack.gateway_url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {stack.secrets.api_key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return reply.headers["x-fulgurite-version"]


def applied(stack: LocalStack) -> set[str]:
    return {
        record.event.version
        for record in read_all(stack.kafka, POLICY_APPLIED, Codec())
        if isinstance(record.event, PolicyApplied) and record.event.outcome is ApplyOutcome.applied
    }


def test_each_role_of_an_agent_learns_by_an_adapter_of_its_own(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text(RUN)
    options = StackOptions(
        data=tmp_path / "data", run=run, model=tiny_model(), environment=SETTINGS
    )
    with LocalStack(options) as stack:
        run_agents(stack, tmp_path)
        deadline = time.monotonic() + WAIT_S
        while not {"writer@1.1", "critic@1.1"} <= applied(stack):
            assert time.monotonic() < deadline, applied(stack)
            time.sleep(0.5)

        updates = [
            record.event
            for record in read_all(stack.kafka, POLICY_UPDATES, Codec())
            if isinstance(record.event, PolicyUpdate) and record.event.artifact is not None
        ]
        assert {update.policy for update in updates} == TRAINED
        assert {update.artifact.format for update in updates if update.artifact} == {
            ArtifactFormat.lora
        }
        calls = [r.event for r in read_calls(stack.kafka, Codec()) if isinstance(r.event, LlmCall)]
        answered = {(call.policy, call.version_first) for call in calls}
        assert {("writer", "writer@0.0"), ("critic", "critic@0.0")} <= answered
        assert ("writer", "writer@1.1") in answered
        assert {version for policy, version in answered if policy == "reader"} == {"reader@0.0"}

        books = read_books(stack.kafka)
        assert books.remainder == 0
        assert books.actions == len(calls)
        entries = [
            record.event
            for record in read_all(stack.kafka, TRAINING_LEDGER, Codec())
            if isinstance(record.event, LedgerEntry)
        ]
        assert {e.policy for e in entries if e.term is LedgerTerm.trained} == TRAINED
        assert {e.policy for e in entries if e.reason is FilterReason.frozen} == {"reader"}
        assert {e.reason for e in entries if e.policy == "reader"} == {FilterReason.frozen}
        newest = max(parse_version(v) for v in applied(stack) if v.startswith("writer@"))

    # A policy that is frozen after it was trained is served as it was.
    run.write_text(RUN.replace('name = "writer"', 'name = "writer"\nfrozen = true'))
    with LocalStack(options) as stack:
        assert stack.serving.trained == ("critic",)
        deadline = time.monotonic() + WAIT_S
        while answering_version(stack, "writer") != str(newest):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert answering_version(stack, "reader") == "reader@0.0"
