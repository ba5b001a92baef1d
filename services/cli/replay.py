"""Defines the command `fulgurite replay`: rebuilds trajectories from the log.

See docs/how-to/replay.md for what it promises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from fulgurite.episodes.exclusions import parse_exclusions
from fulgurite.groups.credit import credit_rule
from fulgurite.topics import TRAJECTORIES
from services.cli.errors import report_errors, show_failures
from services.cli.options import (
    Archive,
    ArchiveOnly,
    Concurrency,
    MemoryLimit,
    RewardName,
    Timeout,
    Weights,
)
from services.cli.output import print_json
from services.cli.people import parse_people
from services.common.kafka.codec import make_codec
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.terminal import make_console, plain
from services.replay.archive import open_source
from services.replay.closings import Changes
from services.replay.errors import BadArgument
from services.replay.groups import INPUTS, REACH_MS, read_groups
from services.replay.replay import Report, run
from services.replay.rescoring import Rescorer
from services.replay.sinks import open_sink
from services.replay.windows import parse_datetime
from services.rewarder.closing_settings import ClosingSettings
from services.rewards.plugins import RewardPlugin
from services.rewards.sandbox import Limits
from services.runner.options import REWARD_NAME, read_rewards, read_weights

_SHOWN = 5


def replay(
    into: Annotated[
        str,
        typer.Option(
            metavar="TOPIC|DIR.parquet",
            help="Target: a new topic, named without the prefix, or a folder DIR.parquet.",
        ),
    ],
    from_beginning: Annotated[
        bool,
        typer.Option(
            "--from-beginning",
            help="Replay every group in the log, and in the archive if one is given.",
        ),
    ] = False,
    from_datetime: Annotated[
        str | None,
        typer.Option(
            metavar="ISO",
            help="Replay the groups that began at or after this ISO time; "
            "UTC unless it names a zone.",
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE.py:FN|builtin:NAME",
            help="Score episodes with this function instead of the rewards in the log. Repeatable "
            "with names.",
        ),
    ] = None,
    name: RewardName = REWARD_NAME,
    rejudge: Annotated[
        bool,
        typer.Option(
            "--rejudge",
            help="Call the function even where the log has its reward for the same episode.",
        ),
    ] = False,
    credit: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Credit rule that spreads rewards over actions; without it, the live one.",
        ),
    ] = None,
    weight: Weights = None,
    exclude: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Rules for calls that are no part of the task, `[]` for none; without it, the "
            "live ones (FULGURITE_REWARDER_EXCLUDED_CALLS).",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SUBJECT|TENANT",
            help="Leave the episodes of this subject (su_...), or of this tenant (SHA-256 of its "
            "plain key), out of training. Repeatable.",
        ),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Allow a target that is not empty, and add to it.")
    ] = False,
    archive: Archive = None,
    archive_only: ArchiveOnly = False,
    concurrency: Concurrency = 8,
    timeout: Timeout = 30.0,
    memory: MemoryLimit = 2048,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Rebuild trajectories from llm.calls, agent.status and agent.rewards, without running an agent
    again.

    With unchanged rules the result equals the live trajectories byte for byte. With another reward
    function, credit rule, weights or exclusions, or without some people, each group is closed once,
    with all its events in the log.

    It is safe beside live traffic: it reads up to the end offsets at its start, commits no offsets
    and never writes to a topic of the deployment. `fulgurite train --topic TOPIC` trains on the
    result.

    Exits 1 if an option is invalid or the target is in use, 2 if the log cannot be read. Exits 3 if
    a function failed for an episode, or a live trajectory could not be computed again; the others
    are written. `fulgurite try` has the same codes.

    Example: `fulgurite replay --from-beginning --reward rewards.py:score --into trajectories.v2`
    """
    with report_errors("replay"):
        if from_beginning == (from_datetime is not None):
            raise BadArgument("give either --from-beginning or --from-datetime ISO")
        since = None if from_datetime is None else parse_datetime(from_datetime)
        changes = _changes(credit, weight or (), exclude, without or (), rescored=bool(reward))
        if rejudge and not reward:
            raise BadArgument(
                "--rejudge needs --reward FILE.py:FN: the log has the rewards, but not the "
                "functions that gave them"
            )
        limits = Limits(processes=concurrency, timeout_s=timeout, memory_mb=memory)
        plugins = [
            RewardPlugin(reference, named)
            for named, reference in read_rewards(reward or (), name).items()
        ]
        with Rescorer(plugins, limits, anew=rejudge) if plugins else nullcontext() as rescorer:
            report = _run(
                into,
                since,
                changes,
                rescorer,
                append=append,
                archive=archive,
                archive_only=archive_only,
                quiet=as_json,
            )
    _show(report, into, as_json=as_json)
    if report.unmet or report.failed:
        raise typer.Exit(3)


def _changes(
    credit: str | None,
    weights: Sequence[str],
    exclude: str | None,
    without: Sequence[str],
    *,
    rescored: bool,
) -> Changes:
    if credit is not None:
        credit_rule(credit)
    try:
        exclusions = None if exclude is None else parse_exclusions(exclude)
    except ValueError as error:
        raise BadArgument(f"--exclude: {error}") from error
    subjects, tenants = parse_people(without)
    return Changes(
        credit=credit,
        weights=read_weights(weights),
        exclusions=exclusions,
        without=subjects,
        tenants=tenants,
        rescored=rescored,
    )


def _run(
    into: str,
    since: int | None,
    changes: Changes,
    rescorer: Rescorer | None,
    *,
    append: bool,
    archive: Path | None,
    archive_only: bool,
    quiet: bool,
) -> Report:
    kafka, codec, settings = KafkaSettings(), make_codec(), ClosingSettings()
    settings.rules()
    source = open_source(kafka, codec, archive, archive_only=archive_only)
    sink = open_sink(into, append=append, settings=kafka, codec=codec)
    topics = (*INPUTS, TRAJECTORIES)
    total = source.count(topics, None if since is None else since - REACH_MS)
    try:
        with _progress(quiet) as progress:
            task = progress.add_task("reading", total=total)
            groups = read_groups(
                source,
                codec,
                since_ms=since,
                on_progress=lambda count: progress.advance(task, count),
            )
            report = run(
                _counted(groups, progress, task),
                sink,
                source=source,
                codec=codec,
                changes=changes,
                settings=settings,
                rescorer=rescorer,
            )
            progress.update(task, completed=total)
    finally:
        sink.close()
    return report


def _counted(groups: Iterator[Any], progress: Progress, task: Any) -> Iterator[Any]:
    for count, group in enumerate(groups, 1):
        progress.update(task, description=f"{count} groups")
        yield group


def _progress(quiet: bool) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("records"),
        TimeRemainingColumn(),
    )
    console = make_console(stderr=True, soft_wrap=False)
    return Progress(
        *columns, console=console, transient=True, disable=quiet or not console.is_terminal
    )


def _show(report: Report, into: str, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    console = make_console()
    console.print(
        f"{plain(into)}: {report.rows} rows and {report.tombstones} tombstones of {report.closed} "
        f"groups, {report.actions} actions; {report.open} groups are still open"
    )
    if report.judged or report.reused:
        console.print(
            f"{report.judged} rewards computed, {report.reused} reused; no value for "
            f"{report.failed} episodes"
        )
        show_failures(console, report.why)
    _list(console, "left out", report.left_out)
    _list(console, "cannot be computed again as it is in the log", report.unmet)


def _list(console: Console, what: str, found: Sequence[str]) -> None:
    for line in found[:_SHOWN]:
        console.print(f"[yellow]{what}:[/yellow] {plain(line)}")
    if len(found) > _SHOWN:
        console.print(f"... and {len(found) - _SHOWN} more (--json has them all)")
