"""`make demo`: a real agent learns to use a calculator, or what else an `example.toml` describes,
with every part of the system on this machine.

Starts the local stack on a data folder of its own, evaluates the base model on held-out tasks,
trains through the runner, evaluates again, and shows the curve and the ledger. Where the example
has a warm start, that comes first. Ctrl-C at any moment stops everything. Writes OUT/report.json,
OUT/curve.png, OUT/tasks, OUT/data and OUT/warm.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fulgurite.diagnosis.idle_time import idle_share
from fulgurite.events import AgentStatus, Event, LlmCall, PolicyUpdate, Trajectory
from fulgurite.learning.intervals import Estimate
from fulgurite.topics import AGENT_STATUS, LLM_CALLS, POLICY_UPDATES, TRAJECTORIES, Topic
from services.cli.ledger import read_books
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.common.processes.errors import ProcessError
from services.common.processes.program_path import own_programs_first
from services.common.runtime.interrupts import interrupts_noted
from services.common.runtime.process_secrets import hide_from_other_processes
from services.local_stack.demo_report import LedgerReport, Phases, Report, Scores, draw_chart, show
from services.local_stack.errors import StackError
from services.local_stack.example import read_example
from services.local_stack.example_runs import ExampleRuns, documented_command, shown
from services.local_stack.exports import exporting_stack
from services.local_stack.local_services import project_folder
from services.local_stack.local_stack import LocalStack, OnReady, StackOptions
from services.local_stack.python_environments import example_environment
from services.local_stack.samples import best_samples
from services.local_stack.warm_start import exported, train_warm_model
from services.runner.errors import RunnerError
from services.runner.summary import INTERRUPTED, Summary

GROUPS_PER_STEP = 5
MAX_WAIT_S = 30
"""Seconds that a group with a signal waits for others. At the end of the training few groups have
one, and a step is made on what there is.
"""
UPDATES = 10
HELD_OUT = 210

_E = TypeVar("_E", bound=Event)

PARTS = ("kafka", "valkey", "learner", "aggregator", "rewarder", "applier", "gateway", "vllm")

_EXAMPLE = Path("examples/calculator/example.toml")
_MARKER = ".made-by-make-demo"
_SAMPLES = 3


class Choices(msgspec.Struct, frozen=True):
    """The command line."""

    seed: int
    control: bool
    updates: int
    held_out: int
    out: Path
    example: Path
    model: Path | None = None
    run: Path | None = None
    warm_start: bool = True


class Demo:
    """One demo, from the task files to the report."""

    def __init__(self, choices: Choices, console: Console) -> None:
        """Raises SettingsInvalid."""
        self._choices = choices
        self._example = read_example(choices.example)
        self._console = console
        self._memory = MemoryMeter()

    def run(self) -> Report:
        """Run the demo. Raises StackError, ProcessError, RunnerError, LogUnavailable."""
        data = empty_folder(self._choices.out / "data")
        own_kafka = self._has_exports_of_a_stack()
        runs = ExampleRuns(self._example, self._environment(), self._choices.seed, self._console)
        tasks = self._make_tasks(runs)
        # The agents find `python` where this one is.
        with self._memory, exported({"PATH": own_programs_first()}):
            came = time.monotonic()
            model = self._warm_model(runs, tasks / "warm.jsonl", own_kafka) or self._choices.model
            began = time.monotonic()
            with (
                starting(self._console) as on_ready,
                LocalStack(self._training_stack(data, model, own_kafka), on_ready) as stack,
                # The reward worker finds Kafka as the services do.
                exported(stack.environment),
            ):
                on_ready("", 0)
                if stack.console_url is not None:
                    self._console.print(f"watch it at {stack.console_url}", highlight=False)
                started = time.monotonic()
                before = self._evaluate(runs, tasks / "heldout.jsonl", "before", stack.kafka)
                evaluated = time.monotonic()
                summary = self._train(runs, tasks / "train.jsonl", stack.kafka)
                trained = time.monotonic()
                after = self._evaluate(runs, tasks / "heldout.jsonl", "after", stack.kafka)
                phases = Phases(
                    install=_install_seconds(),
                    warm_start=began - came,
                    start=started - began,
                    train=trained - evaluated,
                    evaluate=evaluated - started + time.monotonic() - trained,
                )
                report = self._report(before, after, summary, phases, stack.kafka)
        self._write(report)
        return report

    def _training_stack(self, data: Path, model: Path | None, own_kafka: bool) -> StackOptions:
        run_file = self._choices.run or self._example.run
        settings = self._settings()
        if run_file is None:
            settings["FULGURITE__BATCH__GROUPS"] = str(GROUPS_PER_STEP)
            settings["FULGURITE__BATCH__MAX_WAIT_S"] = str(MAX_WAIT_S)
        if self._choices.control:
            settings["FULGURITE__BATCH__PERMUTE_REWARDS"] = str(self._choices.seed)
        return StackOptions(
            data=data,
            run=run_file,
            model=model,
            aliases=self._aliases,
            environment=settings,
            own_kafka=own_kafka,
            console=True,
        )

    @property
    def _aliases(self) -> tuple[str, ...]:
        """What agents ask for, whatever the run's policies are called."""
        return "policy", *self._example.aliases

    def _settings(self) -> dict[str, str]:
        return {**self._example.settings, "FULGURITE__ENGINE__SEED": str(self._choices.seed)}

    def _environment(self) -> Path | None:
        """The environment of the agent's packages, if it has one of its own."""
        if self._example.requirements is None:
            return None
        with self._console.status(f"installing {shown(self._example.requirements)}"):
            return example_environment(self._example)

    def _warm_model(self, runs: ExampleRuns, tasks: Path, own_kafka: bool) -> Path | None:
        """The folder of the warm-started model; None without a warm start."""
        warm = self._example.warm_start
        if warm is None or not self._choices.warm_start:
            return None
        with starting(self._console, but="learner") as on_ready:
            return train_warm_model(
                warm,
                runs,
                tasks,
                StackOptions(
                    data=empty_folder(self._choices.out / "warm"),
                    model=self._choices.model,
                    aliases=self._aliases,
                    environment=self._settings(),
                    own_kafka=own_kafka,
                    trains=False,
                ),
                on_ready,
                self._console,
            )

    def _has_exports_of_a_stack(self) -> bool:
        """Whether this shell has another stack's exports: the demo must not train its policy."""
        other = exporting_stack(os.environ)
        if other is not None:
            self._console.print(
                f"this shell has the exports of the stack on {other}: the demo starts a Kafka "
                "of its own",
                markup=False,
            )
        return other is not None

    def _make_tasks(self, runs: ExampleRuns) -> Path:
        folder = self._choices.out / "tasks"
        arguments = [
            "--seed",
            str(self._choices.seed),
            "--held-out",
            str(self._choices.held_out),
            "--out",
            str(folder),
            *self._example.task_arguments,
        ]
        argv = [runs.python, str(self._example.tasks), *arguments]
        done = subprocess.run(argv, check=False, stdout=subprocess.DEVNULL)
        if done.returncode != 0:
            raise StackError(f"`{' '.join(argv)}` ended with exit code {done.returncode}")
        return folder

    def _evaluate(self, runs: ExampleRuns, tasks: Path, when: str, kafka: KafkaSettings) -> Scores:
        scores: list[tuple[Estimate, dict[str, float]]] = []
        run_ids: list[str] = []
        for temperature in ("1", "0"):
            title = f"held out, {when} training, {'sampled' if temperature == '1' else 'greedy'}"
            options = runs.evaluation(tasks, temperature)
            summary = runs.run(options, title, kafka)
            run_ids.append(options.run_id)
            if summary.reward is None:
                raise RunnerError(
                    f"{title}: no rollout was scored; see {self._choices.out / 'data' / 'logs'}"
                )
            self._console.print(f"{title}: {summary.reward}", highlight=False, markup=False)
            scores.append((summary.reward, summary.components))
        (sampled, components), (greedy, _) = scores
        return Scores(sampled, greedy, components, run_ids[0])

    def _train(self, runs: ExampleRuns, tasks: Path, kafka: KafkaSettings) -> Summary:
        options = runs.training(tasks, self._choices.updates)
        self._console.print(
            f"[bold]training[/bold], as with\n  {documented_command(options)}", highlight=False
        )
        return runs.run(options, "training", kafka)

    def _report(
        self, before: Scores, after: Scores, summary: Summary, phases: Phases, kafka: KafkaSettings
    ) -> Report:
        return Report(
            title=self._example.title,
            seed=self._choices.seed,
            control=self._choices.control,
            reward_before=before.sampled.mean,
            reward_before_interval=(before.sampled.low, before.sampled.high),
            reward_after=after.sampled.mean,
            reward_after_interval=(after.sampled.low, after.sampled.high),
            greedy_before=before.greedy.mean,
            greedy_before_interval=(before.greedy.low, before.greedy.high),
            greedy_after=after.greedy.mean,
            greedy_after_interval=(after.greedy.low, after.greedy.high),
            components_before=before.components,
            components_after=after.components,
            held_out=self._choices.held_out,
            updates=summary.updates,
            version=summary.version,
            first_rollout_to_last_update_s=summary.first_rollout_to_last_update_s or 0.0,
            idle_share=read_idle_share(kafka, summary.run_id, summary.version),
            curve=summary.curve,
            updated_at_s=summary.updated_at_s,
            rollouts=summary.counts,
            calls=sum(1 for _ in read_all(kafka, LLM_CALLS, make_codec())),
            trajectories=sum(1 for _ in _events(kafka, TRAJECTORIES, Trajectory)),
            ledger=read_ledger(kafka),
            phases=phases,
            peak_memory_mib=self._memory.peak_mib,
            samples=best_samples(kafka, after.run_id, _SAMPLES),
        )

    def _write(self, report: Report) -> None:
        out = self._choices.out
        (out / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        draw_chart(report, out / "curve.png")


class MemoryMeter:
    """Measures the peak of resident memory of this process and its descendants, every 2 seconds."""

    def __init__(self) -> None:
        self.peak_mib = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> MemoryMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stopping.wait(2.0):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
            self.peak_mib = max(self.peak_mib, total // (1 << 20))


def read_ledger(kafka: KafkaSettings) -> LedgerReport:
    """The balance, as `fulgurite ledger` reads it."""
    balance = read_books(kafka)
    return LedgerReport(actions=balance.actions, terms=balance.terms, remainder=balance.remainder)


def read_idle_share(kafka: KafkaSettings, run_id: str, last_version: str) -> float | None:
    """The idle share of a training run, from the log."""
    return idle_share(
        run_id,
        last_version,
        _events(kafka, AGENT_STATUS, AgentStatus),
        _events(kafka, LLM_CALLS, LlmCall),
        _events(kafka, POLICY_UPDATES, PolicyUpdate),
    )


def _events(kafka: KafkaSettings, topic: Topic, kind: type[_E]) -> Iterator[_E]:
    for record in read_all(kafka, topic, make_codec()):
        if isinstance(record.event, kind):
            yield record.event


def empty_folder(folder: Path) -> Path:
    """An empty folder; what an earlier demo left there is removed, and nothing else. Raises
    StackError.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise StackError(
            f"{folder} holds files that `make demo` did not write: choose another folder with --out"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARKER).touch()
    return folder


@contextlib.contextmanager
def starting(console: Console, but: str = "") -> Generator[OnReady]:
    """Show which parts, but one, are up; the call with an empty name ends it."""
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=not console.is_terminal,
    )
    tasks = {name: progress.add_task(f"starting {name}", total=1) for name in PARTS if name != but}

    def on_ready(name: str, seconds: float) -> None:
        # Of several policies each has a learner, and of several backends each an applier.
        name = name.partition("-")[0]
        if not name:
            progress.stop()
        elif name in tasks:
            progress.update(tasks[name], completed=1, description=f"{name} is up")
            if not console.is_terminal:
                console.print(f"{name} is up after {seconds:.1f} s", highlight=False)

    if console.is_terminal:
        progress.start()
    try:
        yield on_ready
    finally:
        progress.stop()


def _install_seconds() -> float:
    """How long the installation took, as it recorded it; 0 where it had nothing to do."""
    try:
        return float((project_folder() / ".fulgurite" / "install-seconds").read_text())
    except (OSError, ValueError):
        return 0.0


def _parse_arguments(arguments: list[str] | None) -> Choices:
    parser = argparse.ArgumentParser(
        prog="python -m services.local_stack.demo",
        description="A real agent learns to use a calculator, or to do what another example asks.",
    )
    parser.add_argument("--seed", type=int, default=0, help="of tasks and training")
    parser.add_argument(
        "--control",
        action="store_true",
        help="permute rewards within groups: the score must not rise",
    )
    parser.add_argument("--updates", type=int, default=UPDATES, help="optimizer steps")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="held-out tasks")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(".fulgurite/demo"),
        help="where report, curve, tasks and data go",
    )
    parser.add_argument(
        "--model", type=Path, help="Hugging Face folder, or id on the hub; without it SmolLM2-135M"
    )
    parser.add_argument(
        "--example",
        type=Path,
        default=_EXAMPLE,
        help="file that describes the agent, its tasks and rewards",
    )
    parser.add_argument("--run", type=Path, help="file that describes the training run")
    parser.add_argument(
        "--no-warm-start",
        dest="warm_start",
        action="store_false",
        help="train the model as it is, for example what an earlier warm start left in "
        "OUT/warm/model",
    )
    chosen = parser.parse_args(arguments)
    return Choices(
        chosen.seed,
        chosen.control,
        chosen.updates,
        chosen.held_out,
        chosen.out,
        chosen.example,
        chosen.model,
        chosen.run,
        chosen.warm_start,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; the exit code."""
    console = Console()
    choices = _parse_arguments(arguments)
    hide_from_other_processes()
    os.chdir(project_folder())
    try:
        with interrupts_noted():
            report = Demo(choices, console).run()
    except KeyboardInterrupt:
        console.print("stopped; no process is left")
        return INTERRUPTED
    except (StackError, ProcessError, RunnerError, LogUnavailable) as error:
        console.print(f"make demo: {error}", style="red", markup=False)
        return 1
    out = choices.out
    show(
        report,
        console,
        {
            "report": out / "report.json",
            "curve": out / "curve.png",
            "weights": out / "data/artifacts",
            "logs": out / "data/logs",
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
