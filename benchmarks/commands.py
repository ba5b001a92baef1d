"""Runs `fulgurite` commands on a stack, as a user of the stack would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from benchmarks.demo_runs import PROJECT
from services.common.processes.program_path import own_programs_first
from services.local_stack.local_stack import LocalStack

_COMMAND = (sys.executable, "-P", "-m", "services.cli.main")
_STOP_S = 30.0


def environment_of(stack: LocalStack) -> dict[str, str]:
    """The variables of a command. Agents find `python` where this one is."""
    return {**os.environ, **stack.environment, "PATH": own_programs_first()}


def fulgurite(
    environment: Mapping[str, str], words: Sequence[str], codes: Collection[int] = (0,)
) -> str:
    """The output of a command. Raises SystemExit for an exit code that is none of `codes`."""
    done = subprocess.run(
        [*_COMMAND, *words],
        check=False, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode not in codes:
        raise SystemExit(f"`fulgurite {' '.join(words)}` ended with exit code {done.returncode}")
    return done.stdout


class Command(msgspec.Struct):
    """A command beside the stack."""

    argv: Sequence[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_COMMAND, *self.argv],
                cwd=PROJECT, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return self

    def kill(self) -> None:
        """Kill it as a crash would. Raises SystemExit if it has ended by itself."""
        if self.process is None or self.process.poll() is not None:
            raise SystemExit(f"`fulgurite {self.argv[0]}` has ended: see {self.log}")
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(_STOP_S)
