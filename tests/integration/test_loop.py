"""The whole loop on real engines, small: agents → gateway → Kafka → episodes → rewards → verl → new weights, served and accounted for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from fulgurite.codec import Codec
from fulgurite.events import LlmCall, PolicyApplied
from fulgurite.kinds import ApplyOutcome, CallOutcome
from fulgurite.topics import POLICY_APPLIED
from services.calls import read_calls
from services.cli.ledger import read_books
from services.kafka import read_all
from services.stack.local_stack import LocalStack, StackOptions
from services.stack.model import tiny_model

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
"""

SETTINGS = {
    "FULGURITE_GROUPS_PER_STEP": "2",
    # A random model's words rarely end by themselves.
    "FULGURITE_REWARDER_FAILURE_POLICIES": '{"truncated": "train"}',
    "OMP_NUM_THREADS": "1",
}


def run_agents(stack: LocalStack, folder: Path) -> dict[str, Any]:
    """`fulgurite run`, as a user would, until the second version is served; its summary."""
    (folder / "agent.py").write_text(AGENT)
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "tasks.jsonl").write_text("".join(json.dumps({"question": f"question {n}"}) + "\n" for n in range(12)))
    command = ["-m", "services.cli.main", "run", "--tasks", "tasks.jsonl", "-n", "4", "--max-ahead", "2", "--updates", "2"]
    options = ["--reward", "rewards.py:vowels", "--preload", "openai", "--results", "results.json", "--json"]
    argv = [sys.executable, *command, *options, "--", sys.executable, "agent.py"]
    environment = {**os.environ, **stack.environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((folder / "results.json").read_text())


def served_version(stack: LocalStack) -> str | None:
    """The version that answers a call with a plain key."""
    request = urllib.request.Request(
        f"{stack.gateway_url}/v1/chat/completions",
        json.dumps({"model": "policy", "messages": [{"role": "user", "content": "?"}], "max_tokens": 4}).encode(),
        {"Authorization": f"Bearer {stack.secrets.api_key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return reply.headers["x-fulgurite-version"]


def test_the_loop_closes(tmp_path: Path) -> None:
    with LocalStack(StackOptions(data=tmp_path / "data", model=tiny_model(), environment=SETTINGS)) as stack:
        summary = run_agents(stack, tmp_path)
        assert summary["updates"] >= 2
        applied = [r.event for r in read_all(stack.kafka, POLICY_APPLIED, Codec()) if isinstance(r.event, PolicyApplied)]
        assert {"policy@1.1", "policy@1.2"} <= {event.version for event in applied if event.outcome is ApplyOutcome.applied}
        calls = [r.event for r in read_calls(stack.kafka, Codec()) if isinstance(r.event, LlmCall)]
        assert all(call.prompt_token_ids and call.choices[0].logprobs for call in calls if call.outcome is CallOutcome.success)
        assert "policy@1.1" in {call.version_first for call in calls}
        books = read_books(stack.kafka)
        assert books.remainder == 0
        assert books.actions == len(calls)
        assert books.terms["trained"] > 0

    # The topics are kept, and a vLLM that starts anew, with the base model, is brought to the newest version.
    with LocalStack(StackOptions(data=tmp_path / "data", model=tiny_model(), environment=SETTINGS)) as stack:
        deadline = time.monotonic() + 120
        while served_version(stack) != summary["version"]:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert read_books(stack.kafka).remainder == 0
