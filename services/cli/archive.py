"""Defines the command `fulgurite archive`: copies topics to Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fulgurite.topics import TOPICS
from services.cli.errors import report_errors
from services.cli.output import print_json
from services.common.kafka.codec import make_codec
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.terminal import make_console, plain
from services.replay import archive as archives
from services.replay.errors import BadArgument


def archive(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder of the archive. It is created if missing; an existing one is continued.",
        ),
    ],
    topic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOPIC",
            help="Only this topic, named without the prefix. Repeatable; without it, all topics.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Copy the topics' records to an archive: Parquet files by topic and day, byte for byte.

    Run it more often than the shortest retention, for example daily: each run adds the records
    since the last one. `fulgurite replay`, `try`, `export` and `cost` read an archive with
    --archive DIR. Payloads stored outside Kafka are copied too. Needs the extra `archive`.

    Exits 1 if an option is invalid, 2 if the log cannot be read. Exits 3 if retention removed
    records before any run archived them, or a payload is missing.

    Example: `fulgurite archive /backup/fulgurite`
    """
    console = make_console()
    with report_errors("archive"):
        unknown = set(topic or ()) - {known.name for known in TOPICS}
        if unknown:
            raise BadArgument(
                f"--topic {', '.join(sorted(unknown))}: no such topic. The topics are "
                f"{', '.join(known.name for known in TOPICS)}."
            )
        chosen = [known for known in TOPICS if not topic or known.name in topic]
        with make_console(stderr=True, soft_wrap=False).status("reading") as status:
            done = archives.archive(
                KafkaSettings(),
                make_codec(),
                folder,
                chosen,
                lambda name, count: status.update(f"{name}: {count} records"),
            )
    if as_json:
        print_json(done)
    else:
        table = Table("topic", "records added")
        for name, count in done.records.items():
            table.add_row(name, str(count))
        console.print(table)
        for gap in done.gaps:
            console.print(f"[yellow]lost to retention:[/yellow] {plain(gap)}")
        if done.claims:
            console.print(f"{done.claims} offloaded payloads copied")
        for claim in done.lost_claims:
            console.print(f"[yellow]lost payload:[/yellow] {plain(claim)}")
    if done.gaps or done.lost_claims:
        raise typer.Exit(3)
