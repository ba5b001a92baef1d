"""Defines the command `fulgurite export`: writes rollouts as a data set for other tools.

Formats and filters: docs/how-to/export.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fulgurite.enums import Mode
from fulgurite.events import Trajectory
from fulgurite.prompts.history import PromptHistory
from fulgurite.untrusted_json import Json, encoded
from fulgurite.versions import parse_version
from services.cli.errors import report_errors, show_left_out
from services.cli.options import Archive, ArchiveOnly
from services.common.kafka.codec import make_codec
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.terminal import make_console, plain
from services.replay.archive import open_source
from services.replay.errors import NotFound, TargetInUse
from services.replay.exports import Filters, dpo, rows, sft, transitions
from services.replay.groups import Group, read_groups
from services.replay.leaving_out import LeftOut
from services.replay.prompts import WITH_PROMPTS, read_prompts, with_served_requests
from services.replay.windows import parse_datetime, parse_since
from services.rewarder.closing_settings import ClosingSettings


class Format(StrEnum):
    """The format of a data set."""

    sft = "sft"
    dpo = "dpo"
    transitions = "transitions"
    parquet = "parquet"


def export(
    form: Annotated[
        Format,
        typer.Argument(
            metavar="FORMAT",
            help="Format: sft, dpo or transitions (JSON lines), or parquet (a folder).",
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET", help="File to write, or folder for parquet. It must not exist."
        ),
    ],
    min_reward: Annotated[
        float | None, typer.Option(help="Only rollouts whose reward is at least this.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="POLICY", help="Only rollouts of this policy.")
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY@VERSION",
            help="Only rollouts whose every call this version answered: POLICY@EPOCH.STEP.",
        ),
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="Only rollouts of this mode.")] = None,
    agent: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Only calls of this agent role.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Only groups that began at or after this time: an age "
            "(90s, 30m, 24h, 7d), or an ISO time.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only rollouts that began before this ISO time."),
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0.0, help="Least difference of rewards within a pair (dpo).")
    ] = 0.0,
    archive: Archive = None,
    archive_only: ArchiveOnly = False,
) -> None:
    """Export rollouts as a data set: chats for SFT, preference pairs for DPO, transitions, or
    Parquet.

    Chats are those that were served, with the edits of prompt versions (`fulgurite prompts`).
    Episodes are rebuilt from the log with the rewards it holds. Without filters every rollout is
    exported: each mode (`val` for held-out tasks and `live` too), failed rollouts, and those
    without reward or with reward 0. Exits 1 if an option is invalid, TARGET exists or no rollout
    matches the filters, 2 if the log cannot be read.

    Example: `fulgurite export sft good.jsonl --mode train --min-reward 0.5`
    """
    with report_errors("export"):
        if target.exists():
            raise TargetInUse(
                f"{target} exists already: name a new file or folder, or remove it first"
            )
        filters = Filters(
            min_reward=min_reward,
            policy=policy,
            version=None if version is None else str(parse_version(version)),
            mode=None if mode is None else str(mode),
            agent=agent,
            until_ms=None if until is None else parse_datetime(until),
        )
        codec, settings, since_ms = make_codec(), ClosingSettings(), parse_since(since)
        settings.rules()
        source = open_source(
            KafkaSettings(), codec, archive, archive_only=archive_only, topics=WITH_PROMPTS
        )
        prompts, left_out = read_prompts(source, codec), LeftOut()
        lines = left_out.each(
            read_groups(source, codec, since_ms=since_ms),
            _maker(form, filters, settings, margin, prompts),
        )
        modes = (
            _write_parquet(target, lines) if form is Format.parquet else _write_lines(target, lines)
        )
        show_left_out(left_out.lines)
        if not modes:
            raise NotFound("no rollout in the log matches the filters, so nothing was written")
    counted = ", ".join(f"{count} {mode}" for mode, count in sorted(modes.items()))
    what = "rows" if form is Format.parquet else "lines"
    make_console().print(plain(f"{target}: {sum(modes.values())} {what} (by mode: {counted})"))


def _maker(
    form: Format,
    filters: Filters,
    settings: ClosingSettings,
    margin: float,
    prompts: PromptHistory,
) -> Callable[[Group], Iterable[Any]]:
    """Return a function that makes the lines or rows of a group."""
    match form:
        case Format.sft:
            return lambda group: sft([with_served_requests(group, prompts)], filters, settings)
        case Format.dpo:
            return lambda group: dpo(
                [with_served_requests(group, prompts)], filters, settings, margin
            )
        case Format.transitions:
            return lambda group: transitions([group], filters, settings)
        case Format.parquet:
            return lambda group: rows([group], filters, settings)


def _write_lines(target: Path, lines: Iterable[Json]) -> Counter[str]:
    """Write JSON lines and count them by mode. Without lines, no file is written."""
    modes: Counter[str] = Counter()
    unfinished = target.with_name(f".{target.name}.unfinished")
    with unfinished.open("wb") as file:
        for line in lines:
            file.write(encoded(line) + b"\n")
            modes[line["mode"]] += 1
    if modes:
        unfinished.rename(target)
    else:
        unfinished.unlink()
    return modes


def _write_parquet(target: Path, found: Iterable[Trajectory]) -> Counter[str]:
    """Write rows and count them by mode. Without rows, no folder is written."""
    from services.replay.columns import ROWS, row_of
    from services.replay.parquet import ParquetFolder

    folder = ParquetFolder(target, ROWS)
    modes: Counter[str] = Counter()
    for row in found:
        folder.write("rows", [row_of(row)])
        modes[str(row.mode)] += 1
    folder.close()
    if not modes:
        target.rmdir()
    return modes
