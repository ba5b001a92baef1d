"""Defines the commands `fulgurite dlq list|show|redrive` for events that could not be processed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Column, Table

from fulgurite.avro.codec import Codec
from fulgurite.events import DeadLetter
from fulgurite.ledger.balance import dead_actions
from services.cli.errors import report_errors
from services.cli.output import print_json, print_table
from services.common.kafka.codec import make_codec
from services.common.kafka.reachability import answering
from services.common.kafka.redriving import content, read_letters, redrive
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.terminal import make_console, plain
from services.replay.errors import BadArgument, NotFound
from services.replay.timeline import shortened
from services.replay.windows import parse_since, shown

app = typer.Typer(
    no_args_is_help=True,
    help="List dead letters, show why they failed, and send them back to their topics.",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Stage = Annotated[
    str | None,
    typer.Option(
        metavar="STAGE", help="Only dead letters of this stage: the service or step that failed."
    ),
]


@app.command("list")
def list_letters(
    stage: Stage = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Only dead letters written at or after this time: an "
            "age (90s, 30m, 24h, 7d), or an ISO time.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters: time, stage, record, error, and the number of training actions lost.

    Exits 1 if an option is invalid, 2 if the log cannot be read.

    Example: `fulgurite dlq list --stage aggregator --since 24h`
    """
    with report_errors("dlq list"):
        after, codec = parse_since(since) or 0, make_codec()
        known = read_letters(answering(KafkaSettings()), codec)
        letters = [
            one for one in known.values() if stage in (None, one.stage) and one.event_time >= after
        ]
        found = [summary(codec, letter) for letter in letters]
    if as_json:
        print_json(found)
        return
    if not letters:
        make_console().print("no dead letters")
        return
    # `dlq show` needs the whole id.
    table = Table(Column("id", no_wrap=True), "time (UTC)", "stage", "record", "actions", "error")
    for letter, about in zip(letters, found, strict=True):
        place = f"{letter.topic}[{letter.partition}]@{letter.offset}"
        error = plain(shortened(f"{letter.error_type}: {letter.error}", 100))
        table.add_row(
            plain(letter.event_id),
            shown(letter.event_time),
            plain(letter.stage),
            plain(place),
            str(len(about["actions"])),
            error,
        )
    print_table(table)


@app.command("show")
def show_letter(
    letter: Annotated[
        str, typer.Argument(metavar="ID", help="Id of a dead letter, or its first characters.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show one dead letter with its event, or with its bytes if they cannot be decoded.

    Exits 1 if there is none with that id, 2 if the log cannot be read.

    Example: `fulgurite dlq show 3f9a`
    """
    with report_errors("dlq show"):
        codec = make_codec()
        (found,) = _chosen(read_letters(answering(KafkaSettings()), codec), [letter])
        event = content(codec, found)
    whole = {
        **summary(codec, found),
        "key": (found.key or b"").decode("utf-8", "replace"),
        "bytes": (found.value or b"")[:4096].hex(),
    }
    whole["event"] = event if isinstance(event, str) else msgspec.to_builtins(event)
    if as_json:
        print_json(whole)
        return
    console = make_console()
    for name, value in whole.items():
        console.print(
            f"[bold]{name}[/bold] {plain(value if name != 'event' else shortened(value, 4_000))}"
        )


@app.command("redrive")
def redrive_letters(
    letters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID...]", help="Ids of dead letters, or their first characters."),
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="Redrive all dead letters, or with --stage all of that stage."),
    ] = False,
    stage: Stage = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent back; write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send the events of dead letters back to their topics, once the cause is repaired.

    Each event is appended to the topic it came from and counts as late: its episode and group get a
    new revision, and actions that were trained are not trained again. Sending one back twice is
    harmless, because it is the same event. Bytes that still cannot be decoded are not sent. Exits 1
    if any was not sent, 2 if the log cannot be read.

    Example: `fulgurite dlq redrive --all --dry-run`
    """
    with report_errors("dlq redrive"):
        if bool(letters) == every:
            raise BadArgument("give either ids of dead letters (see `fulgurite dlq list`) or --all")
        kafka, codec = answering(KafkaSettings()), make_codec()
        known = read_letters(kafka, codec)
        picked = (
            [letter for letter in known.values() if stage in (None, letter.stage)]
            if every
            else _chosen(known, letters or ())
        )
        done = redrive(kafka, codec, picked, dry_run=dry_run)
    if as_json:
        print_json(done)
    elif not done:
        make_console().print("no dead letters")
    else:
        console = make_console()
        for one in done:
            verb = "would be sent" if dry_run else "sent"
            went = (
                f"{verb} back to {plain(one.topic)}"
                if one.topic
                else f"[red]not sent:[/red] {plain(one.why)}"
            )
            console.print(f"{plain(one.letter)}: {went}")
    if any(one.topic is None for one in done):
        raise typer.Exit(1)


def _chosen(letters: dict[str, DeadLetter], names: Iterable[str]) -> list[DeadLetter]:
    """Find dead letters by their ids or unambiguous prefixes. Raises NotFound."""
    found: list[DeadLetter] = []
    for name in names:
        fitting = [letter for event_id, letter in letters.items() if event_id.startswith(name)]
        if len(fitting) != 1:
            raise NotFound(
                f"{len(fitting) or 'no'} dead letters begin with {name!r}: `fulgurite dlq list` "
                "has their ids"
            )
        found += fitting
    return found


def summary(codec: Codec, letter: DeadLetter) -> dict[str, Any]:
    """A dead letter without its bytes. Its actions are those that the ledger calls dead-lettered:
    named in the letter, or in its event.
    """
    names = (
        "event_id",
        "event_time",
        "stage",
        "error_type",
        "error",
        "topic",
        "partition",
        "offset",
    )
    about = {name: getattr(letter, name) for name in names}
    return {**about, "actions": sorted(dead_actions(letter, codec.decode))}
