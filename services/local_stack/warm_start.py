"""Trains the base model of an example on an expert's episodes: docs/how-to/warm-start.md as a
program.

A stack without learners records the episodes, `fulgurite sft` trains a policy `warm` on them, and
its newest version is pulled. What follows starts from that model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from services.local_stack.errors import StackError
from services.local_stack.example import WarmStart
from services.local_stack.example_runs import ExampleRuns, documented_command
from services.local_stack.local_stack import LocalStack, OnReady, StackOptions

_RECORDED = "policy"
_TRAINED = "warm"


def train_warm_model(
    warm: WarmStart,
    runs: ExampleRuns,
    tasks: Path,
    options: StackOptions,
    on_ready: OnReady,
    console: Console,
) -> Path:
    """Train; returns the folder of the model, in the stack's data folder. Raises StackError,
    ProcessError, RunnerError, LogUnavailable.
    """
    folder = options.data / "model"
    with LocalStack(options, on_ready) as stack, exported(stack.environment):
        on_ready("", 0)
        run = runs.expert(tasks, warm.expert)
        console.print(
            f"[bold]warm start[/bold], as with\n  {documented_command(run)}", highlight=False
        )
        runs.run(run, "the expert's episodes", stack.kafka)
        model = ["--model", str(stack.serving.model)]
        names = ["--policy", _TRAINED, "--rows-of", _RECORDED]
        _command(console, ["sft", str(warm.run), *names, *model])
        _command(console, ["policy", "pull", _TRAINED, str(folder)])
    return folder


@contextmanager
def exported(variables: Mapping[str, str]) -> Generator[None]:
    """Set variables of this process, as a shell's export would, and take them back."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _command(console: Console, arguments: Sequence[str]) -> None:
    shown = " ".join(["fulgurite", *arguments])
    console.print(f"  {shown}", highlight=False, markup=False)
    done = subprocess.run([sys.executable, "-m", "services.cli.main", *arguments], check=False)
    if done.returncode != 0:
        raise StackError(f"`{shown}` ended with exit code {done.returncode}")
