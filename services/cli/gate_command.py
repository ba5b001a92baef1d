"""Defines the command `fulgurite gate`: new versions earn their share of live traffic."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from fulgurite.enums import Mode
from fulgurite.learning.evaluation import ENOUGH_TASKS, MARGIN
from fulgurite.selection.authors import evaluation_for
from fulgurite.selection.canary import FEWEST, GuardRails
from services.cli.errors import report_errors
from services.cli.gateway_models import GatewaySilent, aliases_of_gateway
from services.cli.held_out import tasks_of
from services.cli.live_gate import LiveGate, Trials
from services.cli.measuring import measuring
from services.cli.options import MinTasks, Weights, read_reward_functions
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.policies.route_targets import check_alias
from services.common.runtime.clock import now_ms
from services.common.runtime.interrupts import interrupts_noted
from services.common.runtime.terminal import make_console, plain
from services.replay.errors import BadArgument
from services.replay.windows import shown
from services.runner.command import Concurrency, PassedVariables, Preload
from services.runner.options import RunOptions, read_weights
from services.runner.summary import INTERRUPTED

_RAILS = GuardRails()


def gate(
    alias: Annotated[
        str,
        typer.Argument(metavar="ALIAS", help="Alias: the model name that live traffic asks for."),
    ],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[COMMAND...]",
            help="The agent's command for the held-out tasks, after `--`.",
            show_default=False,
        ),
    ] = None,
    share: Annotated[
        float,
        typer.Option(min=0.001, max=0.5, help="Share of the rollouts that a new version gets."),
    ] = _RAILS.share,
    margin: Annotated[
        float,
        typer.Option(
            min=0,
            help="Largest loss of live reward that a promotion accepts, held against the lower "
            "bound of the difference.",
        ),
    ] = _RAILS.margin,
    least: Annotated[
        int,
        typer.Option(
            min=FEWEST, help="End users of the new version with a reward before a promotion."
        ),
    ] = _RAILS.least,
    most: Annotated[
        int,
        typer.Option(
            min=FEWEST,
            help="End users with a reward after which a version that is not shown to be good "
            "enough is rolled back.",
        ),
    ] = _RAILS.most,
    error_rise: Annotated[
        float, typer.Option(min=0, help="Largest rise of the share of failed episodes.")
    ] = _RAILS.error_rise,
    truncation_rise: Annotated[
        float, typer.Option(min=0, help="Largest rise of the share of truncated episodes.")
    ] = _RAILS.truncation_rise,
    slowdown: Annotated[
        float, typer.Option(min=0, help="Largest rise of the time of a call; 0.5 is by half.")
    ] = _RAILS.slowdown,
    patience: Annotated[
        float,
        typer.Option(min=0.001, help="Hours after which an undecided version is rolled back."),
    ] = _RAILS.patience_h,
    tasks: Annotated[
        Path | None,
        typer.Option(
            help="File of held-out tasks, one JSON object per line. A new version gets a share "
            "only if it is not worse on these."
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE.py:FN|builtin:NAME",
            help="Reward function for the held-out tasks; no judge. Repeatable with names.",
        ),
    ] = None,
    weight: Weights = None,
    task_alias: Annotated[
        str | None,
        typer.Option(
            metavar="ALIAS",
            help="Model name that the agents of held-out tasks ask for; without it, ALIAS.",
        ),
    ] = None,
    load: Annotated[
        bool,
        typer.Option(
            "--load",
            help="Route --task-alias to each version of full weights while it answers the "
            "held-out tasks. It must be another alias.",
        ),
    ] = False,
    task_margin: Annotated[
        float,
        typer.Option(
            min=0, help="Largest loss of reward on held-out tasks, as of `fulgurite eval`."
        ),
    ] = MARGIN,
    min_tasks: MinTasks = ENOUGH_TASKS,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Rollouts per task and version.")] = 1,
    concurrency: Concurrency = 16,
    deadline: Annotated[
        float, typer.Option(min=1, help="Seconds that the rollouts of a task may take.")
    ] = 300.0,
    env: PassedVariables = None,
    preload: Preload = None,
    poll: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks at the log.")
    ] = 5.0,
) -> None:
    """Give new versions a share of live traffic, and promote or roll them back, until stopped.

    The newest version of the alias's policy first answers the held-out tasks, if there are any.
    Then it gets --share of the alias. Rewards, failed and truncated episodes and the time of a call
    are compared with those of the stable version, each end user counting once. The route's reason
    has the figures. All state is in the log, so a restart goes on with the trial. A route set by
    hand ends a trial, and the gate goes on from it with versions that are published later.

    Exits 1 for invalid input, or if another service writes the alias's shares; 2 if the log cannot
    be read, 130 if it was stopped.

    Example: `fulgurite gate policy --share 0.1 --tasks held-out.jsonl --reward rewards.py:score --
    python agent.py`
    """
    with report_errors("gate"):
        if most < least:
            raise BadArgument(f"--most {most} is less than --least {least}")
        options = _task_options(alias, command, tasks, reward, weight, task_alias, load=load)
        kafka = answering(KafkaSettings())
        if options is not None:
            options = msgspec.structs.replace(
                options,
                n=n,
                concurrency=concurrency,
                deadline_s=deadline,
                preload=tuple(preload or ()),
                pass_environment=tuple(env or ()),
            )
        rails = GuardRails(
            share=share,
            margin=margin,
            least=least,
            most=most,
            error_rise=error_rise,
            truncation_rise=truncation_rise,
            slowdown=slowdown,
            patience_h=patience,
        )
        found = LiveGate(
            alias=alias,
            policy=_policy_of(alias),
            rails=rails,
            margin=task_margin,
            min_tasks=min_tasks,
            poll_s=poll,
        )
        _run(kafka, found, options, load=load)
    raise typer.Exit(INTERRUPTED)


def _run(kafka: KafkaSettings, gate: LiveGate, options: RunOptions | None, *, load: bool) -> None:
    """Run a gate until it is stopped."""
    console = make_console()

    def report(text: str) -> None:
        console.print(plain(f"{shown(now_ms())} {text}"))

    with interrupts_noted() as stopped:
        if options is not None:
            author = evaluation_for(gate.alias)
            with measuring(options, kafka, load=load, author=author) as measure:
                Trials(kafka, gate, measure, report).run(stopped)
            return
        with suppress(KeyboardInterrupt):
            Trials(kafka, gate, None, report).run(stopped)


def _task_options(
    alias: str,
    command: Sequence[str] | None,
    tasks: Path | None,
    reward: Sequence[str] | None,
    weight: Sequence[str] | None,
    task_alias: str | None,
    *,
    load: bool,
) -> RunOptions | None:
    """How the held-out tasks are run; None without any. Raises BadArgument."""
    if tasks is None and not command and not reward:
        if load or task_alias is not None:
            raise BadArgument("--load and --task-alias are for held-out tasks: give --tasks")
        return None
    if tasks is None or not command or not reward:
        raise BadArgument(
            "held-out tasks need --tasks, --reward and, after `--`, the agent's command"
        )
    if load and task_alias in (None, alias):
        raise BadArgument(
            "--load routes a whole alias to the new version: give --task-alias another than "
            f"{alias}"
        )
    tasks_of(tasks)
    return RunOptions(
        tasks=tasks,
        command=tuple(command),
        run_id="",
        rewards=read_reward_functions(reward),
        weights=read_weights(weight or ()),
        mode=Mode.val,
        model=task_alias or alias,
        epochs=1,
        cwd=Path.cwd(),
    )


def _policy_of(alias: str) -> str:
    """The policy that serves an alias; its own name if the gateway is silent. Raises BadTarget."""
    try:
        aliases = aliases_of_gateway()
    except GatewaySilent as error:
        make_console(stderr=True).print(
            f"[yellow]gate:[/yellow] {plain(f'cannot check the alias {alias!r}: {error}')}"
        )
        return alias
    check_alias(alias, aliases)
    return aliases[alias] or alias
