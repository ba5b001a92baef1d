"""Dead letters: what could not be processed, and may it be put back?"""

from __future__ import annotations

import json
from collections.abc import Sequence

from fulgurite.avro.codec import Codec
from fulgurite.errors import CodecError
from fulgurite.events import DeadLetter
from fulgurite.topics import DEAD_LETTERS
from services.common.runtime.event_json import event_json
from services.console.index.payloads import PayloadReader
from services.console.pages.blocks import (
    Block,
    Button,
    Buttons,
    Column,
    Filters,
    Heading,
    Notice,
    Table,
    Text,
)
from services.console.pages.formats import ago, cell, clock, count, size
from services.console.pages.reading import Asked, Row
from services.console.pages.view import View
from services.console.pages.window import choice_field, since, window_field

_SHOWN = 200
_SHOWN_BYTES = 512

_STAGES = """
SELECT stage, error_type, count(*) AS letters, sum(actions)::BIGINT AS actions,
    max(event_time) AS last_at
FROM dead_letters WHERE event_time >= $1 GROUP BY stage, error_type ORDER BY letters DESC, stage
"""

_LETTERS = f"""
SELECT * FROM dead_letters WHERE event_time >= $1 AND ($2 IS NULL OR stage = $2)
QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY event_time) = 1
ORDER BY event_time DESC, event_id LIMIT {_SHOWN}
"""

_ONE = "SELECT * FROM dead_letters WHERE event_id = $1 LIMIT 1"

_ALL_STAGES = "SELECT DISTINCT stage FROM dead_letters ORDER BY stage"


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    stages = [row["stage"] for row in asked.rows(_ALL_STAGES)]
    if not stages:
        return [Notice("Nothing could not be processed: there are no dead letters.", "good")]
    stage, letter = asked.address.get("stage"), asked.address.get("letter")
    start = since(asked, "all")
    return [
        Filters(
            (window_field(asked, "all"), choice_field("stage", "Stage", stage, stages)),
            asked.address.kept("since", "stage"),
        ),
        *(chosen_letter(asked, letter) if letter is not None else ()),
        stages_table(asked, asked.rows(_STAGES, start)),
        *([Buttons((redrive_stage(stage),))] if stage is not None else []),
        letters_table(asked, asked.rows(_LETTERS, start, stage)),
    ]


def stages_table(asked: Asked, rows: Sequence[Row]) -> Table:
    """What failed where, the most frequent first."""
    return Table(
        (
            Column("Stage", note="Service and step that gave up"),
            Column("Error"),
            Column("Dead letters", number=True),
            Column("Actions lost", number=True),
            Column("Last"),
        ),
        tuple(
            (
                cell(row["stage"], asked.address.but(stage=row["stage"])),
                cell(row["error_type"], tone="bad"),
                cell(row["letters"]),
                cell(row["actions"]),
                cell(ago(row["last_at"], asked.now_ms)),
            )
            for row in rows
        ),
        "By stage",
        "None in this window.",
    )


def letters_table(asked: Asked, rows: Sequence[Row]) -> Table:
    """One row per dead letter, the newest first."""
    return Table(
        (
            Column("Dead letter"),
            Column("When"),
            Column("Stage"),
            Column("Record"),
            Column("Actions", number=True),
            Column("Size", number=True),
            Column("Error"),
        ),
        tuple(
            (
                cell(row["event_id"], asked.address.but(letter=row["event_id"]), most=20),
                cell(ago(row["event_time"], asked.now_ms)),
                cell(row["stage"]),
                cell(place(row)),
                cell(row["actions"]),
                cell(size(row["bytes"])),
                cell(f"{row['error_type']}: {row['error']}", tone="bad"),
            )
            for row in rows
        ),
        "Dead letters",
        "None in this window.",
    )


def place(row: Row) -> str:
    """Where the event is in the log."""
    return f"{row['topic']}[{row['source_partition']}]@{row['source_offset']}"


def chosen_letter(asked: Asked, name: str) -> list[Block]:
    """One dead letter with its event, and what may be done with it."""
    row = asked.row(_ONE, name)
    if not row:
        return [Notice(f"There is no dead letter {name}.", "warning")]
    payloads = PayloadReader(asked.index, asked.codec)
    record = payloads.record(DEAD_LETTERS.name, row["partition"], row["offset"])
    lost = count(row["actions"], "training action")
    return [
        Heading(
            f"{row['error_type']} in {row['stage']}",
            f"{clock(row['event_time'])}: the record {place(row)}, key {row['key'] or '–'}, "
            f"{size(row['bytes'])}; {lost} lost with it",
        ),
        Text(row["error"], "Error"),
        Text(event_text(asked.codec, record), "Event", folded=True),
        Notice("The same in a terminal:", commands=(f"fulgurite dlq show {row['event_id']}",)),
        Buttons((redrive_one(row),)),
    ]


def event_text(codec: Codec, record: bytes | None) -> str:
    """The event in a dead letter as JSON, or its bytes where they cannot be decoded."""
    if record is None:
        return "The index does not hold the record any more."
    try:
        letter = codec.decode(record)
        if not isinstance(letter, DeadLetter):
            return f"The record holds {type(letter).__name__}, not a dead letter."
        if letter.value is None:
            return "The dead letter has no bytes: the event is still in its topic."
    except CodecError as error:
        return f"The record cannot be read: {error}"
    try:
        event = codec.decode(letter.value)
    except CodecError as error:
        return f"{type(error).__name__}: {error}\n{letter.value[:_SHOWN_BYTES].hex(' ')}"
    return json.dumps({"type": type(event).__name__, **event_json(event)}, indent=2, default=str)


def redrive_one(row: Row) -> Button:
    """Sends one event back."""
    return Button(
        "Send it back",
        "redrive",
        f"Append the event to {row['topic']} again? Do it once the cause is repaired. It counts as "
        "late; sending it twice is harmless.",
        (("letter", row["event_id"]),),
    )


def redrive_stage(stage: str) -> Button:
    """Sends all events of a stage back."""
    return Button(
        f"Send all of {stage} back",
        "redrive_stage",
        f"Append all events that {stage} gave up on to their topics again? Do it once the cause is "
        "repaired. They count as late; sending them twice is harmless.",
        (("stage", stage),),
        tone="warning",
    )


VIEW = View(
    "/dead-letters",
    "Dead letters",
    "What could not be processed, and may it be put back?",
    content,
    key="d",
    section="Operations",
)
