"""`fulgurite run`: the run as a command. `run_command` is the same as a library call."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer

from fulgurite.enums import Mode
from fulgurite.versions import MalformedVersion, parse_version
from services.common.kafka.client import KafkaSettings, LogUnavailable
from services.common.kafka.reachability import answering
from services.common.runtime import logs
from services.common.runtime.process_secrets import hide_from_other_processes
from services.common.runtime.terminal import make_console
from services.rewards.errors import PluginError
from services.rewards.plugins import RewardPlugin
from services.runner.errors import BadReward, RunnerError
from services.runner.options import (
    DEFAULT_GIVE_UP_AFTER,
    JUDGE,
    RunOptions,
    read_rewards,
    read_weights,
)
from services.runner.progress import JsonWatcher, TerminalWatcher
from services.runner.run import INTERRUPTED, Run, Summary, Watcher
from services.runner.settings import RunnerSettings

DEFAULT_MAX_AHEAD = 8
"""One batch of the learner's default size: every rollout is then sampled from the newest weights.
"""

T = TypeVar("T")


def run(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...", help="The agent's command, after `--`.", show_default=False
        ),
    ],
    tasks: Annotated[
        Path,
        typer.Option(
            help="Tasks, one JSON object a line; the field `reference` never reaches the agent."
        ),
    ],
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE.py:FN|builtin:NAME|judge:ALIAS",
            help="Function that pays an episode, yours or a built-in one, or a model that "
            "ranks the group. Repeatable with names: their "
            "weighted sum is learned from.",
        ),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="NAME=NUMBER: a reward's weight in the sum, 1 if not given; 0 only records "
            "it. Repeatable.",
        ),
    ] = None,
    rubric: Annotated[
        Path | None, typer.Option(help="A file of standards that a `judge:` has on top of its own.")
    ] = None,
    n: Annotated[
        int,
        typer.Option("-n", "--n", min=1, help="Rollouts of each task: the group that is compared."),
    ] = 6,
    concurrency: Annotated[int, typer.Option(min=1, help="Agent processes at once.")] = 16,
    mode: Annotated[
        Mode, typer.Option(help="`train`, or `val` for held-out tasks: rewarded, never trained.")
    ] = Mode.train,
    model: Annotated[
        str, typer.Option(metavar="ALIAS", help="Model name that the agents ask for.")
    ] = "policy",
    deadline: Annotated[
        float,
        typer.Option(
            min=1, help="Seconds for a group, retries included; then its processes are killed."
        ),
    ] = 300.0,
    max_attempts: Annotated[
        int,
        typer.Option(
            min=1, help="Tries at a rollout; only what the model did not cause is tried again."
        ),
    ] = 3,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Passes over the tasks; without it 1, or as many as the updates take."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Tasks at most.")] = None,
    max_ahead: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Groups that may wait for the learner; {DEFAULT_MAX_AHEAD} in training. At "
            f"least its batch.",
        ),
    ] = None,
    updates: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many new versions.")
    ] = None,
    until_version: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY@VERSION",
            help="Stop when this version is served, for example policy@1.20.",
        ),
    ] = None,
    give_up_after: Annotated[
        int,
        typer.Option(
            min=0,
            help="Stop after so many groups in a row without anything to learn, or to measure; "
            "0: never.",
        ),
    ] = DEFAULT_GIVE_UP_AFTER,
    preload: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE", help="Module to import once; agents are forked with it. Repeatable."
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VARIABLE", help="Environment variable that agents inherit too. Repeatable."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of tasks from the second pass on.")] = 0,
    results: Annotated[
        Path | None, typer.Option(help="Write the summary with every rollout to this JSON file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on standard output.")] = False,
) -> None:
    """Run an agent on tasks: each rollout is a process that gets OPENAI_BASE_URL, OPENAI_API_KEY
    and its task, nothing else.

    The task comes as the variable TASK and on standard input. What the agents do is recorded by the
    gateway, paid by the reward function and, in mode `train`, learned from. Example:

    fulgurite run --tasks train.jsonl -n 6 --reward rewards.py:score --preload openai -- python
    agent.py

    Exits 0 if the run was of use, 1 if it cannot go on, 2 for options that do not fit, 3 if it
    taught nothing (`val`: measured nothing) or gave up, 130 if it was stopped: Ctrl-C ends it with
    the summary and --results, a second one at once.
    """
    logs.configure("runner", "WARNING")
    hide_from_other_processes()
    rewards = _read(read_rewards, reward or (), "--reward")
    if rubric is not None and not any(given.startswith(JUDGE) for given in rewards.values()):
        raise typer.BadParameter(
            f"no reward is a judge that it could be for: --reward NAME={JUDGE}ALIAS",
            param_hint="--rubric",
        )
    try:
        options = RunOptions(
            tasks=tasks,
            command=tuple(command),
            run_id=new_run_id(),
            n=n,
            concurrency=concurrency,
            rewards=rewards,
            rubric=rubric,
            weights=_read(read_weights, weight or (), "--weight"),
            mode=mode,
            model=model,
            deadline_s=deadline,
            max_attempts=max_attempts,
            epochs=epochs,
            limit=limit,
            max_ahead=max_ahead
            if max_ahead is not None or mode is not Mode.train
            else DEFAULT_MAX_AHEAD,
            updates=updates,
            give_up_after=give_up_after,
            until_version=parse_version(until_version) if until_version else None,
            preload=tuple(preload or ()),
            pass_environment=tuple(env or ()),
            seed=seed,
            cwd=Path.cwd(),
        )
    except MalformedVersion as error:
        raise typer.BadParameter(str(error), param_hint="--until-version") from error
    sys.exit(_run_and_tell(options, as_json, results))


def _read(
    reader: Callable[[Sequence[str]], dict[str, T]], given: Sequence[str], option: str
) -> dict[str, T]:
    try:
        return reader(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


class Interrupted(KeyboardInterrupt):
    """Somebody stopped the run; every process of it is gone."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary


def new_run_id() -> str:
    """A name for a run that no other has."""
    return f"run-{secrets.token_hex(5)}"


def run_command(
    options: RunOptions,
    watcher: Watcher,
    settings: RunnerSettings | None = None,
    kafka: KafkaSettings | None = None,
) -> Summary:
    """Run to the end. SIGINT and SIGTERM end it with Interrupted once every process is gone, a
    second one ends this process at once.

    Raises RunnerError, LogUnavailable.
    """
    check_rewards(options)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        return asyncio.run(
            _stoppable(
                Run(options, settings or RunnerSettings(), kafka or from_environment(), watcher),
                numbers,
            )
        )
    finally:
        for number, handler in before.items():  # asyncio leaves the system's defaults
            signal.signal(number, handler)


def check_rewards(options: RunOptions) -> None:
    """Load what rewards are given with, before an agent is started. Raises BadReward."""
    try:
        for name, reference in options.rewards.items():
            if not reference.startswith(JUDGE):
                RewardPlugin(reference, name)
        if options.rubric is not None:
            options.rubric.read_text(encoding="utf-8")
    except (PluginError, OSError, UnicodeDecodeError) as error:
        raise BadReward(str(error)) from error


def from_environment() -> KafkaSettings:
    """Kafka's address and security, from KAFKA_* variables. Raises LogUnavailable."""
    return answering(KafkaSettings())


async def _stoppable(run: Run, numbers: Sequence[signal.Signals]) -> Summary:
    task = asyncio.current_task()
    assert task is not None
    stopped: list[int] = []

    def stop(number: int) -> None:
        if stopped:
            # The launcher kills every agent as soon as this process is gone.
            os._exit(INTERRUPTED)
        stopped.append(number)
        task.cancel()

    for number in numbers:
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return await run.execute()
    except asyncio.CancelledError:
        if stopped:
            raise Interrupted(run.summary(interrupted=True)) from None
        raise


def _run_and_tell(options: RunOptions, as_json: bool, results: Path | None) -> int:
    try:
        summary = _run_json(options) if as_json else _run_shown(options)
    except (RunnerError, LogUnavailable) as error:
        if as_json:
            print(json.dumps({"event": "error", "error": str(error)}), flush=True)  # noqa: T201
        make_console(stderr=True).print(f"fulgurite run: {error}", style="red", markup=False)
        return 1
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_bytes(msgspec.json.format(msgspec.json.encode(summary)))
    return summary.exit_code


def _run_json(options: RunOptions) -> Summary:
    writer = JsonWatcher(lambda line: print(line, flush=True))  # noqa: T201  lines are this mode's product
    summary = _run(options, writer)
    writer.finish(summary)
    return summary


def _run_shown(options: RunOptions) -> Summary:
    with TerminalWatcher(make_console(stderr=True, soft_wrap=False), "run") as shown:
        summary = _run(options, shown)
    shown.finish(summary)
    return summary


def _run(options: RunOptions, watcher: Watcher) -> Summary:
    try:
        return run_command(options, watcher)
    except Interrupted as stopped:
        return stopped.summary


def main() -> None:
    """`python -m services.runner.command`: the command without the rest of the command line."""
    typer.run(run)


if __name__ == "__main__":
    main()
