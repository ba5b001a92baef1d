"""The runs of an example, as commands that a user could type."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from services.local_stack.example import Example
from services.local_stack.example_runs import ExampleRuns, documented_command

EXAMPLE = Example(
    title="One",
    agent=Path("agent.py"),
    tasks=Path("tasks.py"),
    reward="rewards.py:score",
    recorded=("style",),
    credit_rule="per_role",
    preload=("openai",),
    concurrency=20,
)
REWARDS = "--reward reward=rewards.py:score --weight style=0 --credit-rule 'per_role'"


@pytest.fixture
def runs() -> ExampleRuns:
    return ExampleRuns(EXAMPLE, Path("environment"), 0, Console())


def test_what_is_run_can_be_typed(runs: ExampleRuns) -> None:
    agent = "environment/bin/python agent.py"
    assert documented_command(runs.training(Path("train.jsonl"), 10)) == (
        f"fulgurite run --tasks train.jsonl -n 6 --concurrency 16 {REWARDS} --preload openai "
        f"--updates 10 -- {agent}"
    )
    assert documented_command(runs.evaluation(Path("heldout.jsonl"), "0")) == (
        f"fulgurite run --tasks heldout.jsonl -n 1 --concurrency 20 {REWARDS} --mode val "
        f"--preload openai -- {agent} --temperature 0"
    )
    assert documented_command(runs.expert(Path("warm.jsonl"), "expert.py:answer")) == (
        f"fulgurite run --tasks warm.jsonl -n 1 --concurrency 16 {REWARDS} "
        f"--expert expert.py:answer --preload openai -- {agent}"
    )
