"""Defines the command `fulgurite run`; `run_command` does the same as a library call."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer

from fulgurite.enums import Mode
from fulgurite.errors import UnknownRule
from fulgurite.groups import credit
from fulgurite.versions import MalformedVersion, Version, parse_version
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.processes.errors import ProcessError
from services.common.runtime import logs
from services.common.runtime.process_secrets import hide_from_other_processes
from services.common.runtime.terminal import make_console
from services.rewards.errors import PluginError
from services.rewards.plugins import RewardPlugin
from services.rewards.sandbox import check
from services.runner.errors import BadReward, RunnerError
from services.runner.jobs import JobQueue
from services.runner.options import (
    DEFAULT_GIVE_UP_AFTER,
    JUDGE,
    RunOptions,
    read_rewards,
    read_weights,
)
from services.runner.progress import JsonWatcher, TerminalWatcher
from services.runner.run import Run, Watcher
from services.runner.settings import RunnerSettings
from services.runner.summary import BROKEN, INTERRUPTED, Summary

Concurrency = Annotated[int, typer.Option(min=1, help="Agent processes that run at once.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use at most this many tasks.")]
PassedVariables = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VARIABLE",
        help="Name of an environment variable to pass on to agents. Repeatable.",
    ),
]
Preload = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE", help="Module to import once, before agents are forked. Repeatable."
    ),
]

T = TypeVar("T")


def run(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...",
            help="The agent's command and its arguments, after `--`.",
            show_default=False,
        ),
    ],
    tasks: Annotated[
        Path,
        typer.Option(
            help="File of tasks, one JSON object per line. The agent never gets the field "
            "`reference`."
        ),
    ],
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE.py:FN|builtin:NAME|judge:ALIAS",
            help="Reward function, your own or a built-in one, or `judge:ALIAS` for a model that "
            "ranks the group. Repeatable with names; training uses their weighted sum.",
        ),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="Weight of a named reward in the sum; 1 if not given, 0 only records the reward. "
            "Repeatable.",
        ),
    ] = None,
    rubric: Annotated[
        Path | None,
        typer.Option(help="Text file of criteria for `judge:` rewards, added to the default ones."),
    ] = None,
    credit_rule: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="How rewards are spread over the actions, such as `step` or "
            "`discounted(gamma=0.9)`; `identical` if not given.",
        ),
    ] = None,
    expert: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FN",
            help="Function that answers in the place of the model, to record a warm start for "
            "`fulgurite sft`. It answers 8 requests at once at most.",
        ),
    ] = None,
    n: Annotated[
        int,
        typer.Option(
            "-n",
            "--n",
            min=1,
            help="Rollouts per task: the size of the group whose rewards are compared.",
        ),
    ] = 6,
    concurrency: Concurrency = 16,
    mode: Annotated[
        Mode,
        typer.Option(
            help="`train`, or `val` for held-out tasks, which are rewarded but never trained."
        ),
    ] = Mode.train,
    model: Annotated[
        str,
        typer.Option(
            metavar="ALIAS",
            envvar="FULGURITE_POLICY",
            show_envvar=False,
            help="Model name that the rollouts are declared for, by default FULGURITE_POLICY.",
        ),
    ] = "policy",
    prompt_version: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="Version of the alias's prompt that the rollouts are served with, candidates "
            "included, or `none` for what the agent sends. Without it, the one in force.",
        ),
    ] = None,
    deadline: Annotated[
        float,
        typer.Option(
            min=1,
            help="Seconds that a group may take, retries included; then its processes are killed.",
        ),
    ] = 300.0,
    max_attempts: Annotated[
        int,
        typer.Option(
            min=1,
            help="Attempts per rollout. Only a failure that the model did not cause is retried.",
        ),
    ] = 3,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Passes over the tasks. Without it 1, or as many as --updates or "
            "--until-version needs.",
        ),
    ] = None,
    limit: Limit = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="File of held-out tasks, which are left out of --tasks, whatever their "
            "`reference`."
        ),
    ] = None,
    max_ahead: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Groups that may wait for the learner, at least its batch size. Without it, a "
            "batch and a half. Refused in mode `val` and with --expert, where no group waits.",
        ),
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop after this many new versions. Refused in mode `val` and with --expert.",
        ),
    ] = None,
    until_version: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY@VERSION",
            help="Stop when this version is served, for example policy@1.20. Refused in mode `val` "
            "and with --expert.",
        ),
    ] = None,
    give_up_after: Annotated[
        int,
        typer.Option(
            min=0,
            help="Stop after this many groups in a row without a training signal, or in `val` "
            "without a reward; 0: never.",
        ),
    ] = DEFAULT_GIVE_UP_AFTER,
    preload: Preload = None,
    env: PassedVariables = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the order of tasks from the second pass on.")
    ] = 0,
    results: Annotated[
        Path | None, typer.Option(help="JSON file to write the summary to, with every rollout.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Run an agent on tasks, one process per rollout.

    Each process gets OPENAI_BASE_URL, OPENAI_API_KEY and its task: in the variable TASK and on
    standard input. The gateway records its calls, and the reward function scores the episode. In
    mode `train` the learner trains on the groups.

    Exits 0 if the run gave a training signal (`val`: a measurement), 3 if it gave none or gave up,
    1 if it cannot continue, 2 if an option is invalid, 130 if it was stopped. The first Ctrl-C
    stops the agents, prints the summary and writes --results; a second one ends the run at once. A
    run that cannot continue prints and writes what it has, too.

    Example: `fulgurite run --tasks train.jsonl --reward rewards.py:score -- python agent.py`
    """
    logs.configure("runner", "WARNING")
    hide_from_other_processes()
    rewards = _read(read_rewards, reward or (), "--reward")
    if rubric is not None and not any(given.startswith(JUDGE) for given in rewards.values()):
        raise typer.BadParameter(
            f"{rubric} has no use: no --reward is a judge. Add --reward NAME={JUDGE}ALIAS, or "
            "leave --rubric out.",
            param_hint="--rubric",
        )
    try:
        if credit_rule is not None:
            credit.credit_rule(credit_rule)
    except UnknownRule as error:
        raise typer.BadParameter(str(error), param_hint="--credit-rule") from error
    if mode is Mode.val or expert is not None:
        _refuse_without_learner(
            "--mode val" if mode is Mode.val else "--expert",
            {"--max-ahead": max_ahead, "--updates": updates, "--until-version": until_version},
        )
    if results is not None:
        _check_writable(results)
    try:
        options = RunOptions(
            tasks=tasks,
            held_out=held_out,
            command=tuple(command),
            run_id=new_run_id(),
            n=n,
            concurrency=concurrency,
            rewards=rewards,
            rubric=rubric,
            weights=_read(read_weights, weight or (), "--weight"),
            credit_rule=credit_rule,
            expert=expert,
            mode=mode,
            model=model,
            prompt_version=prompt_version,
            deadline_s=deadline,
            max_attempts=max_attempts,
            epochs=epochs,
            limit=limit,
            max_ahead=max_ahead,
            updates=updates,
            give_up_after=give_up_after,
            until_version=_read_goal(until_version) if until_version else None,
            preload=tuple(preload or ()),
            pass_environment=tuple(env or ()),
            seed=seed,
            cwd=Path.cwd(),
        )
    except MalformedVersion as error:
        raise typer.BadParameter(str(error), param_hint="--until-version") from error
    sys.exit(_run_and_print(options, as_json, results))


def _read(
    reader: Callable[[Sequence[str]], dict[str, T]], given: Sequence[str], option: str
) -> dict[str, T]:
    try:
        return reader(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _refuse_without_learner(cause: str, given: Mapping[str, object]) -> None:
    """Refuse options that wait for a learner, where none trains. Raises BadParameter."""
    for option, value in given.items():
        if value is not None:
            raise typer.BadParameter(
                f"it waits for the learner, which trains nothing with {cause}: leave it out",
                param_hint=option,
            )


def _read_goal(text: str) -> Version:
    """The version to wait for. Raises MalformedVersion, BadParameter."""
    goal, policy = parse_version(text), RunnerSettings().policy
    if goal.policy != policy:
        raise typer.BadParameter(
            f"{text} is of the policy {goal.policy!r}, and this run counts versions of {policy!r} "
            f"(FULGURITE_POLICY): set FULGURITE_POLICY={goal.policy}",
            param_hint="--until-version",
        )
    return goal


def _check_writable(results: Path) -> None:
    """Make the folder of a file that is written at the end. Raises BadParameter."""
    try:
        results.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(
            f"{results.parent} cannot be made: {error.strerror}", param_hint="--results"
        ) from error
    if results.is_dir():
        raise typer.BadParameter(f"{results} is a folder: name a file", param_hint="--results")
    if not os.access(results if results.exists() else results.parent, os.W_OK):
        raise typer.BadParameter(f"{results} cannot be written", param_hint="--results")


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal, and all its processes have ended."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary


def new_run_id() -> str:
    """Make a unique id for a run."""
    return f"run-{secrets.token_hex(5)}"


def run_command(
    options: RunOptions,
    watcher: Watcher,
    settings: RunnerSettings | None = None,
    kafka: KafkaSettings | None = None,
    jobs: JobQueue | None = None,
    on_break: Callable[[Summary], None] | None = None,
) -> Summary:
    """Run to the end and return the summary. Raises RunnerError, ProcessError,
    LogUnavailable.

    `jobs`: run these groups, and not the tasks of the file. `on_break` is given what a run has of
    its groups, before the error is raised that it cannot continue after.

    SIGINT and SIGTERM end all processes of the run and raise Interrupted; a second signal ends this
    process at once.
    """
    check_rewards(options)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        return asyncio.run(
            _stoppable(
                Run(
                    options,
                    settings or RunnerSettings(),
                    kafka or from_environment(),
                    watcher,
                    jobs,
                ),
                numbers,
                on_break,
            )
        )
    finally:
        for number, handler in before.items():  # asyncio leaves the system's defaults
            signal.signal(number, handler)


def check_rewards(options: RunOptions) -> None:
    """Check that reward functions, the expert and the rubric can be loaded. Raises BadReward."""
    try:
        for name, reference in options.rewards.items():
            if not reference.startswith(JUDGE):
                RewardPlugin(reference, name)
        if options.expert is not None:
            check(options.expert)
        if options.rubric is not None:
            options.rubric.read_text(encoding="utf-8")
    except (PluginError, OSError, UnicodeDecodeError) as error:
        raise BadReward(str(error)) from error


def from_environment() -> KafkaSettings:
    """Read KAFKA_* variables and check that Kafka answers. Raises LogUnavailable."""
    return answering(KafkaSettings())


async def _stoppable(
    run: Run, numbers: Sequence[signal.Signals], on_break: Callable[[Summary], None] | None
) -> Summary:
    task = asyncio.current_task()
    assert task is not None
    stopped: list[int] = []

    def stop(number: int) -> None:
        if stopped:
            # The fork server kills every agent as soon as this process is gone.
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
    except (RunnerError, ProcessError, LogUnavailable) as error:
        if on_break is not None and run.groups:
            on_break(run.summary(error=str(error)))
        raise


def _run_and_print(options: RunOptions, as_json: bool, results: Path | None) -> int:
    try:
        return _run_json(options, results) if as_json else _run_shown(options, results)
    except (RunnerError, ProcessError, LogUnavailable) as error:
        if as_json:
            print(json.dumps({"event": "error", "error": str(error)}), flush=True)  # noqa: T201
        make_console(stderr=True).print(f"fulgurite run: {error}", style="red", markup=False)
        return BROKEN


def _run_json(options: RunOptions, results: Path | None) -> int:
    writer = JsonWatcher(lambda line: print(line, flush=True))  # noqa: T201  lines are this mode's product
    return _run(options, writer, partial(_finish, writer, results))


def _run_shown(options: RunOptions, results: Path | None) -> int:
    with TerminalWatcher(make_console(stderr=True, soft_wrap=False), "run") as shown:
        return _run(options, shown, partial(_finish, shown, results))


def _run(options: RunOptions, watcher: Watcher, finish: Callable[[Summary], None]) -> int:
    try:
        summary = run_command(options, watcher, on_break=finish)
    except Interrupted as stopped:
        summary = stopped.summary
    finish(summary)
    return summary.exit_code


def _finish(watcher: JsonWatcher | TerminalWatcher, results: Path | None, summary: Summary) -> None:
    watcher.finish(summary)
    if results is not None:
        results.write_bytes(msgspec.json.format(msgspec.json.encode(summary)))


def main() -> None:
    """Run the command alone: `python -m services.runner.command`."""
    typer.run(run)


if __name__ == "__main__":
    main()
