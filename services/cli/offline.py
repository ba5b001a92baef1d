"""Defines the commands `fulgurite sft` and `fulgurite dpo`: train a policy on a recording.

See docs/how-to/train-offline.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from fulgurite.events import Event
from fulgurite.learning.offline import LeftOut
from fulgurite.topics import TRAJECTORIES
from services.cli.errors import report_errors
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs
from services.common.runtime.terminal import make_console, plain
from services.learner.config import RunConfig
from services.learner.config_file import load, variable
from services.learner.errors import LearnerError
from services.learner.main import check_start
from services.learner.offline import Chosen, Method, OfflineRun, Step, choose, method_of
from services.learner.offline_main import train_offline
from services.learner.settings import LearnerSettings
from services.replay.columns import rows_in
from services.replay.errors import BadArgument, NotFound
from services.replay.windows import parse_datetime, parse_since
from services.runner.summary import INTERRUPTED

logger = logs.get()

_SKEW_MS = 60_000
"""How far the clocks that stamp a group's start and the topic's records may differ."""

_WHY: Mapping[LeftOut, str] = {
    LeftOut.not_closed: "their group is not completely in the topic (not_closed)",
    LeftOut.no_reward: "they have no reward (no_reward)",
    LeftOut.no_tokens: "none of their actions may be trained (no_tokens)",
    LeftOut.oversized: "a row is longer than batch.max_row_tokens (oversized)",
    LeftOut.not_best: "their reward is not among the best of their group (not_best)",
    LeftOut.no_pair: "no other episode begins alike and is rewarded differently (no_pair)",
}

File = Annotated[
    Path | None,
    typer.Argument(metavar="[RUN.TOML]", help="File that describes the run; see the docs."),
]
Export = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="DIR",
        help="Read this folder of `fulgurite export parquet`, not a topic.",
    ),
]
Topic = Annotated[
    str | None,
    typer.Option(metavar="TOPIC", help="Topic of trajectories, named without the prefix."),
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Only groups that began at or after this time: an age (90s, 30m, 24h, 7d), or an ISO "
        "time.",
    ),
]
Until = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only groups that began before this ISO time."),
]
Policy = Annotated[
    str | None,
    typer.Option(metavar="POLICY", help="Policy to train; without it, the file's."),
]
RowsOf = Annotated[
    str | None,
    typer.Option(metavar="POLICY", help="Train on the trajectories of this policy instead."),
]
Model = Annotated[
    Path | None,
    typer.Option(help="Hugging Face folder of the base model; without it, the file's."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder for checkpoints and artifacts; without it, FULGURITE_DATA_DIR."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be trained on, and stop.")]


class _Options(NamedTuple):
    """The options of both commands."""

    file: Path | None
    since: str | None
    until: str | None
    topic: str | None
    export: Path | None
    policy: str | None
    rows_of: str | None
    model: Path | None
    data_dir: Path | None
    dry_run: bool

    def variables(self, name: str) -> dict[str, str]:
        """The options that are keys of the run, as its variables."""
        given = {
            variable("policy.topic"): self.topic,
            variable(f"{name}.rows_of"): self.rows_of,
            variable("policy.model"): self.model,
            "FULGURITE_DATA_DIR": self.data_dir,
        }
        return {key: str(value) for key, value in given.items() if value is not None}


def sft(
    file: File = None,
    since: Since = None,
    until: Until = None,
    topic: Topic = None,
    export: Export = None,
    policy: Policy = None,
    rows_of: RowsOf = None,
    model: Model = None,
    data_dir: DataDir = None,
    dry_run: DryRun = False,
) -> None:
    """Train a policy on the best-rewarded episodes of each group in the log (rejection-sampled
    SFT).

    The section [sft] of the run says what is best (docs/reference/runs.md). Each pass over the
    episodes ends with a version, which is published like any other. Stop the policy's learner
    first. Needs the extra `learner`.

    Exits 1 if the run is wrong, cannot go on, or has nothing to train on, 2 if the log cannot be
    read. Exits 130 if a signal ended it; nothing of the pass that it was in is published.

    Example: `fulgurite sft run.toml --since 7d`
    """
    _train(
        "sft",
        _Options(file, since, until, topic, export, policy, rows_of, model, data_dir, dry_run),
    )


def dpo(
    file: File = None,
    since: Since = None,
    until: Until = None,
    topic: Topic = None,
    export: Export = None,
    policy: Policy = None,
    rows_of: RowsOf = None,
    model: Model = None,
    data_dir: DataDir = None,
    dry_run: DryRun = False,
) -> None:
    """Train a policy on pairs of a better and a worse episode of each group in the log (DPO).

    The section [dpo] of the run says what makes a pair, and what the policy is held to
    (docs/reference/runs.md). Each pass over the pairs ends with a version, which is published like
    any other. Stop the policy's learner first. Needs the extra `learner`.

    Exits 1 if the run is wrong, cannot go on, or has nothing to train on, 2 if the log cannot be
    read. Exits 130 if a signal ended it; nothing of the pass that it was in is published.

    Example: `fulgurite dpo run.toml --since 7d --dry-run`
    """
    _train(
        "dpo",
        _Options(file, since, until, topic, export, policy, rows_of, model, data_dir, dry_run),
    )


def _train(name: str, options: _Options) -> None:
    os.environ.update(options.variables(name))
    settings = LearnerSettings()
    logs.configure("learner", "WARNING" if sys.stderr.isatty() else settings.log_level)
    with report_errors(name), _errors_of_the_run():
        if options.topic is not None and options.export is not None:
            raise BadArgument("give either --topic TOPIC or --from DIR, not both")
        config = load(options.file or settings.run, policy=options.policy)
        kafka = answering(KafkaSettings())
        check_start(config, kafka)
        method = method_of(name, config)
        chosen = _choose(method, config, kafka, options)
        _show_chosen(method, chosen)
        if options.dry_run:
            return
        if not chosen.units:
            raise NotFound(
                f"there is nothing to train on; the section [{name}] of the run says what is, and "
                "--since, --until and --topic where it is looked for"
            )
        topic = None if options.export is not None else config.policy.topic
        with _progress() as progress:
            run = train_offline(
                settings,
                config,
                kafka,
                method,
                chosen,
                topic=topic,
                on_step=partial(_show_step, progress),
            )
    _show_published(run)
    if run.is_stopped:
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _errors_of_the_run() -> Generator[None]:
    try:
        yield
    except LearnerError as error:
        raise BadArgument(str(error)) from error


def _choose(method: Method, config: RunConfig, kafka: KafkaSettings, options: _Options) -> Chosen:
    since_ms = parse_since(options.since)
    events = (
        _of_topic(config, kafka, since_ms) if options.export is None else rows_in(options.export)
    )
    with _progress() as progress:
        return choose(
            method,
            config,
            progress.track(events, description="reading records"),
            since_ms=since_ms,
            until_ms=None if options.until is None else parse_datetime(options.until),
            closed_only=options.export is None,
        )


def _of_topic(
    config: RunConfig, kafka: KafkaSettings, since_ms: int | None
) -> Iterator[Event | None]:
    topic = msgspec.structs.replace(TRAJECTORIES, name=config.policy.topic)
    since = None if since_ms is None else max(0, since_ms - _SKEW_MS)
    for record in read_all(kafka, topic, make_codec(), since_ms=since):
        yield record.event


def _progress() -> Progress:
    console = make_console(stderr=True, soft_wrap=False)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _show_step(progress: Progress, step: Step) -> None:
    """Show a step as one bar for each part of the run; where there is no terminal, log it."""
    shown = ", ".join(
        f"{name.rpartition('/')[2]} {step.metrics[name]:.3g}"
        for name in ("loss", "preference/accuracy", "preference/margin")
        if name in step.metrics
    )
    if progress.disable:
        logger.info("step", part=step.what, done=step.done, total=step.total, **step.metrics)
        return
    task = next((one for one in progress.tasks if one.fields["part"] == step.what), None)
    number = progress.add_task("", total=step.total, part=step.what) if task is None else task.id
    progress.update(number, completed=step.done, description=plain(f"{step.what} {shown}".strip()))


def _show_chosen(method: Method, chosen: Chosen) -> None:
    console = make_console()
    actions = sum(len(episode.actions) for episode in chosen.episodes)
    of = len({episode.group_id for episode in chosen.episodes})
    what = f"{len(chosen.units)} pairs" if method.name == "dpo" else f"{len(chosen.units)} episodes"
    console.print(f"{what} of {of} groups, {actions} actions; {chosen.groups} groups were read")
    for reason, count in chosen.left_out.most_common():
        console.print(f"[yellow]{count} episodes left out:[/yellow] {_WHY[reason]}")


def _show_published(run: OfflineRun) -> None:
    console = make_console()
    for update in run.published:
        shown = ", ".join(
            f"{name} {update.metrics[name]:.4g}"
            for name in ("loss", "preference/accuracy", "preference/margin", "optimizer_steps")
            if name in update.metrics
        )
        console.print(f"{plain(update.version)} from {plain(update.parent_version)}: {shown}")
    if run.is_stopped:
        console.print(
            "[yellow]interrupted:[/yellow] nothing of the pass that it was in is published; run it "
            f"again to train from {plain(run.version)}"
        )
