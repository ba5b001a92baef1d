"""Defines the command `fulgurite eval`: compares models on the same held-out tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Column, Table

from fulgurite.enums import Mode
from fulgurite.events import RouteTarget
from fulgurite.learning.evaluation import ENOUGH_TASKS, MARGIN
from fulgurite.versions import parse_version
from services.cli.errors import report_errors
from services.cli.evaluation_rounds import Promotion, rounds
from services.cli.gateway_models import policy_of
from services.cli.held_out import Earned, Pair, held_out_rewards, pairs, reason_of
from services.cli.measuring import measuring
from services.cli.options import Margin, MinTasks, Weights, read_reward_functions
from services.cli.output import print_json, print_table
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.policies.route_log import write_route
from services.common.runtime.interrupts import interrupts_noted
from services.common.runtime.terminal import make_console, plain
from services.replay.errors import BadArgument
from services.runner.command import Concurrency, Limit, PassedVariables, Preload
from services.runner.options import RunOptions, read_weights
from services.runner.summary import INTERRUPTED, USELESS


def evaluate(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[COMMAND...]",
            help="The agent's command and its arguments, after `--`; none with --from-log.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Version (policy@1.7), alias or model of FULGURITE_UPSTREAMS. Repeatable; each is "
            "compared with those before it.",
        ),
    ] = None,
    tasks: Annotated[
        Path | None,
        typer.Option(
            help="File of held-out tasks, one JSON object per line. With --from-log, count only "
            "these."
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE.py:FN|builtin:NAME",
            help="Reward function, as of `fulgurite run`; no judge. Repeatable with names.",
        ),
    ] = None,
    weight: Weights = None,
    alias: Annotated[
        str,
        typer.Option(
            metavar="ALIAS",
            help="Model name that the agents ask for, in whose place the models answer.",
        ),
    ] = "policy",
    load: Annotated[
        bool,
        typer.Option(
            "--load",
            help="Route --alias to each version of full weights while it is evaluated, so that a "
            "backend loads it. Other agents get it too. Adapters need no such route.",
        ),
    ] = False,
    every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Go on until stopped: whenever N new versions of the policy behind --alias were "
            "published, compare the newest with the one that --promote is routed to.",
        ),
    ] = None,
    promote: Annotated[
        str | None,
        typer.Option(
            metavar="ALIAS",
            help="With --every, route this alias to the newest version if it is not worse. It must "
            "be another than --alias.",
        ),
    ] = None,
    margin: Margin = MARGIN,
    min_tasks: MinTasks = ENOUGH_TASKS,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Rollouts per task and model.")] = 1,
    concurrency: Concurrency = 16,
    limit: Limit = None,
    deadline: Annotated[
        float, typer.Option(min=1, help="Seconds that the rollouts of a task may take.")
    ] = 300.0,
    env: PassedVariables = None,
    preload: Preload = None,
    read_log: Annotated[
        bool,
        typer.Option(
            "--from-log", help="Run nothing: compare the rollouts of mode `val` in the log."
        ),
    ] = False,
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="With --from-log, only groups that began at or after this time: an age (24h, 7d), "
            "an ISO time in UTC, or `all`.",
        ),
    ] = "7d",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare versions, aliases and other models on the same held-out tasks.

    Each model answers every task, in mode `val`, which trains nothing. Agents are not changed: the
    gateway lets the model answer in place of --alias. Printed are the mean rewards with 95%
    intervals, and for each pair the difference on the same tasks, with its interval and a p by
    flipping signs, corrected for the number of pairs. A version of full weights that no backend
    serves needs --load.

    Exits 0 if every model has a mean, 3 if one has none, 1 if it cannot continue, 2 if the log
    cannot be read, 130 if it was stopped.

    Example: `fulgurite eval --model policy@0.0 --model policy@1.8 --tasks held-out.jsonl --reward
    rewards.py:score -- python agent.py`
    """
    with report_errors("eval"):
        if read_log:
            earned = held_out_rewards(answering(KafkaSettings()), model or (), since, tasks)
        else:
            if tasks is None or not (model or every) or not command or not reward:
                raise BadArgument(
                    "give --model (or --every), --tasks, --reward and, after `--`, the agent's "
                    "command; or --from-log, which runs nothing"
                )
            options = RunOptions(
                tasks=tasks,
                command=tuple(command),
                run_id="",
                n=n,
                concurrency=concurrency,
                rewards=read_reward_functions(reward),
                weights=read_weights(weight or ()),
                mode=Mode.val,
                model=alias,
                deadline_s=deadline,
                epochs=1,
                limit=limit,
                preload=tuple(preload or ()),
                pass_environment=tuple(env or ()),
                cwd=Path.cwd(),
            )
            if every is not None:
                promotion = Promotion(
                    policy=policy_of(alias),
                    alias=_other(promote, alias),
                    every=every,
                    margin=margin,
                    min_tasks=min_tasks,
                )
                _follow(promotion, options, load=load, as_json=as_json)
            earned = _run_all(model or (), options, load=load)
        compared = pairs(earned)
    if as_json:
        print_json(_as_json(earned, compared))
    else:
        _show(earned, compared, make_console())
    if not earned or any(one.mean is None for one in earned):
        raise typer.Exit(USELESS)


def _other(promote: str | None, alias: str) -> str:
    """The alias to promote. Raises BadArgument if there is none, or it is the agents' own."""
    if promote is None or promote == alias:
        raise BadArgument(
            f"--every needs --promote with another alias than --alias {alias}, to which the "
            "learner's own rollouts go: add one to FULGURITE_ALIASES, for example prod=policy"
        )
    return promote


def _follow(promotion: Promotion, options: RunOptions, *, load: bool, as_json: bool) -> NoReturn:
    """Evaluate and promote versions as they come. Exits 130 when it is stopped."""
    kafka = answering(KafkaSettings())
    console = make_console(stderr=as_json)
    with interrupts_noted() as stopped, measuring(options, kafka, load=load) as measure:
        for one in rounds(kafka, promotion, measure, stopped):
            if as_json:
                print_json({**_as_json(one.earned, [one.pair]), "why_not": one.why_not})
            else:
                _show(one.earned, [one.pair], console)
            candidate = parse_version(one.pair.candidate)
            if one.why_not is not None or one.pair.difference is None:
                console.print(plain(f"{candidate} is not promoted: {one.why_not}"))
                continue
            reason = reason_of(one.pair.difference, one.pair.baseline)
            target = RouteTarget(policy=promotion.policy, version=str(candidate), weight=1.0)
            write_route(kafka, promotion.alias, (target,), reason)
            console.print(plain(f"{promotion.alias} is routed to {candidate}: {reason}"))
    raise typer.Exit(INTERRUPTED)


def _run_all(models: Sequence[str], options: RunOptions, *, load: bool) -> list[Earned]:
    """Run the agent on all tasks with each model. Exits 1 if that fails, 130 if it is stopped."""
    with measuring(options, answering(KafkaSettings()), load=load) as measure:
        return [measure(model) for model in dict.fromkeys(models)]
    raise typer.Exit(INTERRUPTED)


def _as_json(earned: Sequence[Earned], compared: Sequence[Pair]) -> dict[str, Any]:
    return {
        "models": [
            {
                "model": one.model,
                "mean": one.mean,
                "tasks": len(one.rewards),
                "unscored": one.unscored,
                "others": one.others,
            }
            for one in earned
        ],
        "pairs": compared,
    }


def _show(earned: Sequence[Earned], compared: Sequence[Pair], console: Console) -> None:
    if not earned:
        console.print("no rollouts of mode `val`: run `fulgurite run --mode val`, or give --since")
        return
    table = Table("model", "mean reward [95%]", *(_right("tasks", "unscored", "other version")))
    for one in earned:
        counts = (len(one.rewards), one.unscored, one.others)
        table.add_row(plain(one.model), plain(one.mean or "none"), *map(str, counts))
    print_table(table)
    if not compared:
        return
    table = Table(
        "baseline", "model", "difference [95%]", *_right("p", "tasks better", "worse", "equal")
    )
    for pair in compared:
        table.add_row(plain(pair.baseline), plain(pair.candidate), *_cells(pair))
    print_table(table)


def _cells(pair: Pair) -> tuple[str, ...]:
    found = pair.difference
    if found is None:
        return ("no task in common", "", "", "", "")
    equal = found.estimate.count - found.better - found.worse
    return (
        plain(found.estimate),
        f"{pair.adjusted_p:.4f}",
        str(found.better),
        str(found.worse),
        str(equal),
    )


def _right(*titles: str) -> list[Column]:
    return [Column(title, justify="right") for title in titles]
