"""Each example with a warm start, end to end on a tiny model: its agent in its own environment, its
tools, its tasks and rewards, and its expert, who is right.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from services.local_stack.example import read_example
from services.local_stack.example_runs import ExampleRuns, documented_command
from services.local_stack.local_stack import LocalStack, StackOptions
from services.local_stack.model import tiny_model
from services.local_stack.python_environments import example_environment
from services.runner.options import RunOptions
from tests.integration.command_line import PROJECT, run_fulgurite

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900), pytest.mark.xdist_group("examples")]

EXAMPLES = {
    str(file.parent.relative_to(PROJECT / "examples")): example
    for file in sorted(PROJECT.glob("examples/**/example.toml"))
    if (example := read_example(file)).warm_start is not None
}
TASKS = 6
NAMES = [
    # Packages of three more frameworks, and a process for each rollout that may take five seconds.
    pytest.param(name, marks=[pytest.mark.agents] if name.startswith("agent_lightning") else [])
    for name in EXAMPLES
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    aliases = {alias for example in EXAMPLES.values() for alias in example.aliases}
    settings: dict[str, dict[str, Any]] = {}
    for name, value in (item for one in EXAMPLES.values() for item in one.settings.items()):
        settings.setdefault(name, {}).update(json.loads(value))
    options = StackOptions(
        data=tmp_path_factory.mktemp("stack"),
        model=tiny_model(),
        aliases=("policy", *sorted(aliases)),
        environment={name: json.dumps(value) for name, value in settings.items()}
        | {"OMP_NUM_THREADS": "1"},
        trains=False,
    )
    with LocalStack(options) as stack:
        yield stack


def fulgurite(stack: LocalStack, *arguments: str) -> str:
    """Run a command as a user would; what it said."""
    return run_fulgurite(*arguments, environment={**os.environ, **stack.environment}).stdout


def run(stack: LocalStack, options: RunOptions, results: Path) -> dict[str, Any]:
    """Run what the demo documents; the summary."""
    _, command, *arguments = shlex.split(documented_command(options))
    fulgurite(stack, command, "--results", str(results), *arguments)
    return json.loads(results.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_the_expert_is_paid_and_the_model_fails_without_a_crash(
    stack: LocalStack, tmp_path: Path, name: str
) -> None:
    example = EXAMPLES[name]
    assert example.warm_start is not None
    runs = ExampleRuns(example, example_environment(example), 0, Console())
    counts = {"--training": 4, "--held-out": 3, "--warm": TASKS, "--out": tmp_path}
    subprocess.run(
        [runs.python, example.tasks, *(str(one) for pair in counts.items() for one in pair)],
        check=True,
        timeout=300,
    )

    since = datetime.now(UTC).isoformat()
    expert = runs.expert(tmp_path / "warm.jsonl", example.warm_start.expert)
    summary = run(stack, expert, tmp_path / "expert.json")
    assert summary["counts"]["scored"] == TASKS
    rewards = [rollout["reward"] for rollout in summary["rollouts"]]
    assert min(rewards) >= 0.9, summary
    names = ["--policy", "warm", "--rows-of", "policy", "--since", since]
    said = fulgurite(stack, "sft", str(example.warm_start.run), *names, "--dry-run")
    assert f"{TASKS} episodes of {TASKS} groups" in said

    held_out = runs.evaluation(tmp_path / "heldout.jsonl", "1")
    summary = run(stack, held_out, tmp_path / "model.json")
    assert summary["counts"]["scored"] == 3
