"""`fulgurite export`: what the log holds as a data set for other tools. Formats and filters: docs/export.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fulgurite.codec import Codec
from fulgurite.kinds import Mode
from fulgurite.untrusted_json import encoded
from services.cli.failing import told
from services.closing_settings import ClosingSettings
from services.kafka import KafkaSettings
from services.replay.archive import open_source
from services.replay.errors import TargetInUse
from services.replay.exports import Filters, dpo, rows, sft, transitions
from services.replay.groups import Group, read_groups
from services.replay.windows import parse_datetime, parse_since
from services.terminal import make_console, plain


class Format(StrEnum):
    """What is written."""

    sft = "sft"
    dpo = "dpo"
    transitions = "transitions"
    parquet = "parquet"


def export(
    form: Annotated[Format, typer.Argument(metavar="FORMAT", help="sft, dpo, transitions (JSON lines), or parquet (a folder).")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="File, or folder for parquet; must not exist yet.")],
    min_reward: Annotated[float | None, typer.Option(help="Only rollouts of at least this reward.")] = None,
    policy: Annotated[str | None, typer.Option(help="Only rollouts of this policy.")] = None,
    version: Annotated[str | None, typer.Option(help="Only rollouts answered by this version throughout, policy@epoch.step.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="Only rollouts of this mode.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only what this role did.")] = None,
    since: Annotated[str | None, typer.Option(help="Groups that began since: 90s, 30m, 24h, 7d, or ISO.")] = None,
    until: Annotated[str | None, typer.Option(help="Rollouts that began before: ISO.")] = None,
    margin: Annotated[float, typer.Option(min=0.0, help="dpo: least difference of rewards.")] = 0.0,
    archive: Annotated[Path | None, typer.Option(metavar="DIR", help="Read this archive first, then the log beyond it.")] = None,
    archive_only: Annotated[bool, typer.Option("--archive-only", help="Read the archive and no log.")] = False,
) -> None:
    """Write rollouts of the log as a data set: chats for SFT, preference pairs for DPO, plain transitions, or rows as Parquet.

    Episodes are rebuilt from the log with the rewards it holds; failed and unrewarded ones are exported unless a filter leaves them out.
    Exits 1 if what was asked for makes no sense or TARGET exists, 2 if the log cannot be read.
    """
    with told("export"):
        if target.exists():
            raise TargetInUse(f"{target} exists already")
        filters = Filters(
            min_reward=min_reward,
            policy=policy,
            version=version,
            mode=None if mode is None else str(mode),
            agent=agent,
            until_ms=None if until is None else parse_datetime(until),
        )
        codec, settings, since_ms = Codec(), ClosingSettings(), parse_since(since)
        source = open_source(KafkaSettings(), codec, archive, archive_only=archive_only)
        groups = read_groups(source, codec, since_ms=since_ms)
        count = _write(form, target, groups, filters, settings, margin)
    make_console().print(f"{plain(target)}: {count} {'rows' if form is Format.parquet else 'lines'}")


def _write(form: Format, target: Path, groups: Iterator[Group], filters: Filters, settings: ClosingSettings, margin: float) -> int:
    if form is Format.parquet:
        return _write_parquet(target, groups, filters, settings)
    writers: dict[Format, Callable[[], Iterator[dict[str, Any]]]] = {
        Format.sft: lambda: sft(groups, filters),
        Format.dpo: lambda: dpo(groups, filters, margin),
        Format.transitions: lambda: transitions(groups, filters, settings),
    }
    count = 0
    unfinished = target.with_name(f".{target.name}.unfinished")
    with unfinished.open("wb") as file:
        for count, line in enumerate(writers[form](), 1):  # noqa: B007 - the last one is the count
            file.write(encoded(line) + b"\n")
    unfinished.rename(target)
    return count


def _write_parquet(target: Path, groups: Iterator[Group], filters: Filters, settings: ClosingSettings) -> int:
    from services.replay.columns import ROWS, row_of
    from services.replay.parquet import ParquetFolder

    folder = ParquetFolder(target, ROWS)
    count = 0
    for row in rows(groups, filters, settings):
        folder.write("rows", [row_of(row)])
        count += 1
    folder.close()
    return count
