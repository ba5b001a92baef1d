"""What is written is what fastavro writes, byte for byte."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import fastavro
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulgurite.avro.writer import writer_of
from fulgurite.events import EVENT_TYPES, Event
from tests.contract.strategies import events
from tests.fulgurite.avro.fastavro_peer import PARSED, by_fastavro


def written(schema: object, value: Any) -> bytes:
    out = bytearray()
    writer_of(schema)(out, value)
    return bytes(out)


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_every_event_is_written_as_fastavro_writes_it(event_type: type[Event]) -> None:
    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(event=events(event_type))
    def check(event: Event) -> None:
        expected = by_fastavro(
            PARSED[event_type], msgspec.to_builtins(event, builtin_types=(bytes,))
        )
        assert written(PARSED[event_type], event) == expected

    check()


@given(number=st.integers(-(1 << 63), (1 << 63) - 1))
def test_every_long(number: int) -> None:
    assert written("long", number) == by_fastavro("long", number)


@given(number=st.integers(-(1 << 31), (1 << 31) - 1))
def test_every_int(number: int) -> None:
    assert written("int", number) == by_fastavro("int", number)


@pytest.mark.parametrize("value", [False, True])
def test_booleans_in_a_record_and_elsewhere(value: bool) -> None:
    assert written({"type": "array", "items": "boolean"}, [value]) == by_fastavro(
        {"type": "array", "items": "boolean"}, [value]
    )
    schema = cast(Any, fastavro).parse_schema(
        {"type": "record", "name": f"Told{value}", "fields": [{"name": "told", "type": "boolean"}]}
    )
    assert written(schema, SimpleNamespace(told=value)) == by_fastavro(schema, {"told": value})


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 100_000])
def test_strings_and_bytes_of_any_length(size: int) -> None:
    assert written("string", "ä" * size) == by_fastavro("string", "ä" * size)
    assert written("bytes", b"a" * size) == by_fastavro("bytes", b"a" * size)
    fields = [{"name": "text", "type": ["null", "string"]}, {"name": "data", "type": "bytes"}]
    schema = cast(Any, fastavro).parse_schema(
        {"type": "record", "name": f"Sized{size}", "fields": fields}
    )
    value = {"text": "ä" * size, "data": b"a" * size}
    assert written(schema, SimpleNamespace(**value)) == by_fastavro(schema, value)


@pytest.mark.parametrize(
    "schema", [{"type": "array", "items": "long"}, {"type": "map", "values": ["null", "double"]}]
)
@pytest.mark.parametrize("size", [0, 1, 10_000])
def test_arrays_and_maps_of_any_length(schema: dict[str, object], size: int) -> None:
    value = (
        list(range(size))
        if schema["type"] == "array"
        else {str(number): number / 3 if number % 2 else None for number in range(size)}
    )
    assert written(schema, value) == by_fastavro(schema, value)


@pytest.mark.parametrize(
    ("schema", "value", "error"),
    [
        ("int", 1 << 31, OverflowError),
        ("long", 1 << 63, OverflowError),
        ("long", "1", TypeError),
        ("string", None, AttributeError),
        ("string", "\ud800", ValueError),
        ("bytes", "text", TypeError),
        ({"type": "enum", "name": "E", "symbols": ["a"]}, "b", LookupError),
        (
            {"type": "record", "name": "R", "fields": [{"name": "missing", "type": "int"}]},
            1,
            AttributeError,
        ),
    ],
)
def test_what_does_not_fit_is_an_error(schema: object, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        written(schema, value)


def test_a_type_may_be_spelled_out_and_a_union_is_of_null_and_another() -> None:
    assert written({"type": "string"}, "a") == b"\x02a"
    with pytest.raises(ValueError, match="null"):
        writer_of(["string", "null"])
