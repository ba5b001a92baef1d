"""`fulgurite archive`: topics to Parquet, beyond their retention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fulgurite.avro.codec import Codec
from fulgurite.topics import TOPICS
from services.cli.errors import told
from services.cli.output import print_json
from services.common.kafka.client import KafkaSettings
from services.common.runtime.terminal import make_console, plain
from services.replay import archive as archives
from services.replay.errors import BadArgument


def archive(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Made if it is not there; goes on where the last run ended."
        ),
    ],
    topic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOPIC",
            help="Only this topic, without the prefix; may be repeated. Default: all.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Add what the topics hold to an archive: Parquet, partitioned by topic and day, to the byte.
    Needs the extra `archive`.

    Run it more often than the topics' retention, for example daily: each run adds what came since.
    `fulgurite replay`, `try` and `export` read an archive with --archive DIR. What calls left in
    the claims store is copied too.

    Exits 1 if what was asked for makes no sense, 2 if the log cannot be read, 3 if retention had
    removed records that no run had archived, or a claim was gone.
    """
    console = make_console()
    with told("archive"):
        unknown = set(topic or ()) - {known.name for known in TOPICS}
        if unknown:
            raise BadArgument(
                f"no topic {', '.join(sorted(unknown))}; there are "
                f"{', '.join(known.name for known in TOPICS)}"
            )
        chosen = [known for known in TOPICS if not topic or known.name in topic]
        with make_console(stderr=True, soft_wrap=False).status("reading") as status:
            done = archives.archive(
                KafkaSettings(),
                Codec(),
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
            console.print(f"{done.claims} claims copied")
        for claim in done.lost_claims:
            console.print(f"[yellow]lost claim:[/yellow] {plain(claim)}")
    if done.gaps or done.lost_claims:
        raise typer.Exit(3)
