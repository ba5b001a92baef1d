"""What is read is what fastavro reads, and broken bytes are an error."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, cast

import fastavro
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulgurite.avro.codec import Codec
from fulgurite.avro.reader import reader_of
from fulgurite.errors import CodecError
from fulgurite.events import EVENT_TYPES, Event
from tests.contract.strategies import events
from tests.fulgurite.avro.fastavro_peer import PARSED, by_fastavro

CODEC = Codec()


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_every_event_is_read_as_it_was(event_type: type[Event]) -> None:
    read = reader_of(PARSED[event_type], event_type)

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(event=events(event_type))
    def check(event: Event) -> None:
        data = by_fastavro(PARSED[event_type], msgspec.to_builtins(event, builtin_types=(bytes,)))
        assert read(b"before" + data + b"after", 6) == (event, 6 + len(data))

    check()


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_broken_bytes_are_no_event(event_type: type[Event]) -> None:
    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(
        event=events(event_type),
        cut=st.integers(0, 1 << 20),
        at=st.integers(0, 1 << 20),
        byte=st.integers(0, 255),
    )
    def check(event: Event, cut: int, at: int, byte: int) -> None:
        data = CODEC.encode(event)
        with pytest.raises(CodecError):
            CODEC.decode(data[: 5 + cut % (len(data) - 5)])
        wrong = bytearray(data)
        wrong[5 + at % (len(data) - 5)] = byte
        try:
            assert type(CODEC.decode(bytes(wrong))) is event_type
        except CodecError:
            return

    check()


class Colour(StrEnum):
    red = "red"
    green = "green"


class Thing(msgspec.Struct):
    colour: Colour
    other: Colour | None
    name: str
    size: int
    counts: tuple[int, ...]
    weights: dict[str, float | None]
    real: bool


SCHEMA = cast(Any, fastavro).parse_schema(
    {
        "type": "record",
        "name": "Thing",
        "fields": [
            {
                "name": "colour",
                "type": {"type": "enum", "name": "Colour", "symbols": ["red", "green"]},
            },
            {"name": "other", "type": ["null", "Colour"]},
            {"name": "name", "type": {"type": "string"}},
            {"name": "size", "type": "long"},
            {"name": "counts", "type": {"type": "array", "items": "long"}},
            {"name": "weights", "type": {"type": "map", "values": ["null", "double"]}},
            {"name": "real", "type": "boolean"},
        ],
    }
)
READ = reader_of(SCHEMA, Thing)


@given(
    st.builds(
        Thing,
        other=st.sampled_from([None, *Colour]),
        size=st.integers(-(1 << 63), (1 << 63) - 1),
        counts=st.lists(st.integers(-(1 << 63), (1 << 63) - 1)).map(tuple),
        weights=st.dictionaries(st.text(), st.none() | st.floats(allow_nan=False)),
    )
)
def test_every_kind_of_value(thing: Thing) -> None:
    data = by_fastavro(SCHEMA, msgspec.to_builtins(thing))
    assert READ(data, 0) == (thing, len(data))


REST = b"\x00\x02a\x02\x00\x00\x01"
"""All of a thing but its colour."""


def test_a_block_may_tell_its_size() -> None:
    data = b"\x00\x00\x02a\x02\x03\x08\x02\x04\x02\x06\x00\x00\x00"
    assert READ(data, 0)[0].counts == (1, 2, 3)


def test_text_and_blocks_may_be_long() -> None:
    thing = Thing(Colour.red, None, "a" * 10_000, 0, tuple(range(1000)), {}, real=True)
    data = by_fastavro(SCHEMA, msgspec.to_builtins(thing))
    assert READ(data, 0) == (thing, len(data))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\x04" + REST, IndexError),
        (b"\x01" + REST, ValueError),
        (b"\x00\x04" + REST[1:], ValueError),
        (b"\x00\x00\x01" + REST[2:], ValueError),
        (b"\x00\x00\x80\x80\x01" + REST[2:], ValueError),
        (b"\x00\x00\x02\xff" + REST[3:], ValueError),
        (b"\x00\x00\x00" + b"\x80" * 10 + b"\x01", ValueError),
        (b"", IndexError),
    ],
    ids=[
        "symbol",
        "negative symbol",
        "branch",
        "negative length",
        "length",
        "text",
        "number",
        "nothing",
    ],
)
def test_what_is_no_datum_is_an_error(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        READ(data, 0)
