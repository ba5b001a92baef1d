"""Writes and reads events with fastavro: the reference for the compiled functions.

`writer_of` and `reader_of` have the signatures of `fulgurite.avro.writer` and
`fulgurite.avro.reader`, and the same bytes and values come out. They take two to five times as
long, because each event passes through a dictionary.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, cast

import fastavro
import msgspec

from fulgurite.avro.reader import Reader
from fulgurite.avro.writer import Writer

# fastavro's own annotations are partial.
_write = cast(
    Callable[[io.BytesIO, Any, Any], None],
    fastavro.schemaless_writer,  # pyright: ignore[reportUnknownMemberType]
)
_read = cast(
    Callable[[io.BytesIO, Any, Any], Any],
    fastavro.schemaless_reader,  # pyright: ignore[reportUnknownMemberType]
)


def writer_of(schema: object) -> Writer:
    """The writer of a parsed schema: `write(out, value)` appends the datum to `out`."""

    def write(out: bytearray, value: Any) -> None:
        buffer = io.BytesIO()
        _write(buffer, schema, msgspec.to_builtins(value, builtin_types=(bytes,)))
        out += buffer.getvalue()

    return write


def reader_of(
    schema: object, event_type: type[msgspec.Struct], written_with: object | None = None
) -> Reader:
    """The reader of a parsed schema: `read(data, at)` gives the event and where its datum ends.

    `written_with`: the schema of the writer, where it is another one (Avro's schema resolution).
    """

    def read(data: bytes, at: int) -> tuple[Any, int]:
        buffer = io.BytesIO(data)
        buffer.seek(at)
        if written_with is None:
            found = _read(buffer, schema, None)
        else:
            found = _read(buffer, written_with, schema)
        return msgspec.convert(found, event_type, builtin_types=(bytes,)), buffer.tell()

    return read
