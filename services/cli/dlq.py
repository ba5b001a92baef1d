"""`fulgurite dlq list|show|redrive`: events that could not be processed."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer
from rich.table import Column, Table

from fulgurite.avro.codec import Codec
from fulgurite.events import DeadLetter
from services.cli.errors import told
from services.cli.output import print_json, print_table
from services.common.kafka.client import KafkaSettings
from services.common.kafka.reachability import answering
from services.common.runtime.terminal import make_console, plain
from services.replay.dead_letters import chosen, content, read_letters, redrive
from services.replay.errors import BadArgument
from services.replay.timeline import shortened
from services.replay.windows import parse_since, shown

app = typer.Typer(
    no_args_is_help=True,
    help="Dead letters: events that a service could not process, why, and putting them back.",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
Stage = Annotated[
    str | None, typer.Option(metavar="STAGE", help="Only letters of this service or step.")
]


@app.command("list")
def list_letters(
    stage: Stage = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only letters since: 90s, 30m, 24h, 7d, or ISO."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters: when, which service gave up on what, why, and how many training actions
    are lost with it.
    """
    with told("dlq list"):
        after = parse_since(since) or 0
        known = read_letters(answering(KafkaSettings()), Codec())
        letters = [
            one for one in known.values() if stage in (None, one.stage) and one.event_time >= after
        ]
    if as_json:
        print_json([_summary(letter) for letter in letters])
        return
    if not letters:
        make_console().print("no dead letters")
        return
    # An id that is cut is of no use.
    table = Table(Column("id", no_wrap=True), "time (UTC)", "stage", "record", "actions", "error")
    for letter in letters:
        place = f"{letter.topic}[{letter.partition}]@{letter.offset}"
        error = plain(shortened(f"{letter.error_type}: {letter.error}", 100))
        table.add_row(
            plain(letter.event_id),
            shown(letter.event_time),
            plain(letter.stage),
            plain(place),
            str(len(letter.actions)),
            error,
        )
    print_table(table)


@app.command("show")
def show_letter(
    letter: Annotated[str, typer.Argument(metavar="ID", help="A letter's id, or how it begins.")],
    as_json: AsJson = False,
) -> None:
    """Show one dead letter with its event, or with its bytes if they cannot be read. Exits 1 if
    there is none of that id.
    """
    with told("dlq show"):
        codec = Codec()
        (found,) = chosen(read_letters(answering(KafkaSettings()), codec), [letter])
        event = content(codec, found)
    whole = {
        **_summary(found),
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
        typer.Argument(metavar="[ID...]", help="Letters by id, or how their ids begin."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All of them (with --stage: of that stage).")
    ] = False,
    stage: Stage = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be put back, and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put the events of dead letters back, once what stopped them is repaired.

    Each is appended to the topic it came from and counts as late: its episode and its group get a
    new revision, and what was trained already is not trained again. Putting one back twice does no
    harm: it is the same event. Bytes that still cannot be read stay dead. Exits 1 if any stayed.
    """
    with told("dlq redrive"):
        if bool(letters) == every:
            raise BadArgument("name the letters, or say --all")
        kafka, codec = answering(KafkaSettings()), Codec()
        known = read_letters(kafka, codec)
        picked = (
            [letter for letter in known.values() if stage in (None, letter.stage)]
            if every
            else chosen(known, letters or ())
        )
        done = redrive(kafka, codec, picked, dry_run=dry_run)
    if as_json:
        print_json(done)
    elif not done:
        make_console().print("no dead letters")
    else:
        console = make_console()
        for one in done:
            verb = "would go" if dry_run else "went"
            went = (
                f"{verb} back to {plain(one.topic)}"
                if one.topic
                else f"[red]stays dead:[/red] {plain(one.why)}"
            )
            console.print(f"{plain(one.letter)}: {went}")
    if any(one.topic is None for one in done):
        raise typer.Exit(1)


def _summary(letter: DeadLetter) -> dict[str, Any]:
    names = (
        "event_id",
        "event_time",
        "stage",
        "error_type",
        "error",
        "topic",
        "partition",
        "offset",
        "actions",
    )
    return {name: getattr(letter, name) for name in names}
