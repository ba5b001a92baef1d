"""Runs an example's agent on its tasks, as `fulgurite run` does, and shows how it goes on."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from fulgurite.enums import Mode
from services.common.kafka.settings import KafkaSettings
from services.local_stack.example import Example
from services.runner.command import new_run_id, run_command
from services.runner.options import REWARD_NAME, RunOptions
from services.runner.progress import TerminalWatcher
from services.runner.settings import RunnerSettings
from services.runner.summary import Summary

CONCURRENCY = 16
EVALUATION_CONCURRENCY = 24


class ExampleRuns:
    """Makes and starts runs. The gateway's address is in the environment, as a stack exports it."""

    def __init__(
        self, example: Example, environment: Path | None, seed: int, console: Console
    ) -> None:
        """`environment`: of the agent's packages; None for that of this process."""
        self._example = example
        self._python = "python" if environment is None else shown(environment / "bin" / "python")
        self._seed = seed
        self._console = console

    @property
    def python(self) -> str:
        """The interpreter of the example's programs."""
        return sys.executable if self._python == "python" else self._python

    def evaluation(self, tasks: Path, temperature: str) -> RunOptions:
        """Each task once, not to be trained on."""
        return self._options(
            tasks, Mode.val, "--temperature", temperature, n=1, concurrency=EVALUATION_CONCURRENCY
        )

    def training(self, tasks: Path, updates: int) -> RunOptions:
        """Groups of rollouts, until the policy has been updated so often."""
        return self._options(
            tasks,
            Mode.train,
            n=self._example.group_size,
            concurrency=CONCURRENCY,
            updates=updates,
        )

    def expert(self, tasks: Path, reference: str) -> RunOptions:
        """Each task once, answered by an expert."""
        return self._options(
            tasks, Mode.train, n=1, concurrency=CONCURRENCY, expert=shown(Path(reference))
        )

    def run(self, options: RunOptions, title: str, kafka: KafkaSettings) -> Summary:
        """Run to the end. Raises RunnerError, ProcessError, LogUnavailable."""
        with TerminalWatcher(self._console, title) as watcher:
            return run_command(options, watcher, RunnerSettings(), kafka)

    def _options(
        self,
        tasks: Path,
        mode: Mode,
        *arguments: str,
        n: int,
        concurrency: int,
        expert: str | None = None,
        updates: int | None = None,
    ) -> RunOptions:
        example = self._example
        return RunOptions(
            tasks=tasks,
            command=(self._python, shown(example.agent), *example.agent_arguments, *arguments),
            run_id=new_run_id(),
            n=n,
            concurrency=min(concurrency, example.concurrency or concurrency),
            rewards={REWARD_NAME: shown(Path(example.reward))},
            weights=dict.fromkeys(example.recorded, 0.0),
            credit_rule=example.credit_rule,
            expert=expert,
            mode=mode,
            deadline_s=180.0,
            updates=updates,
            preload=example.preload,
            seed=self._seed,
            cwd=Path.cwd(),
        )


def shown(path: Path) -> str:
    """The path as a person would write it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def documented_command(options: RunOptions) -> str:
    """The command line that does the same."""
    parts = [
        "fulgurite run",
        f"--tasks {options.tasks}",
        f"-n {options.n}",
        f"--concurrency {options.concurrency}",
        *(f"--reward {name}={reference}" for name, reference in options.rewards.items()),
    ]
    parts += [f"--weight {name}={weight:g}" for name, weight in options.weights.items()]
    parts += [f"--credit-rule '{options.credit_rule}'"] if options.credit_rule is not None else []
    parts += ["--mode val"] if options.mode is Mode.val else []
    parts += [f"--expert {options.expert}"] if options.expert is not None else []
    parts += [f"--preload {module}" for module in options.preload]
    parts += [f"--updates {options.updates}"] if options.updates is not None else []
    return " ".join([*parts, "--", *options.command])
