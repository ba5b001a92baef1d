"""fastavro's view of our schemas, which compiled readers and writers are compared with."""

from __future__ import annotations

import io
from typing import Any, cast

import fastavro

from fulgurite.avro.schemas import load_schema, schema_folder, schema_name
from fulgurite.events import EVENT_TYPES

PARSED = {
    t: cast(Any, fastavro).parse_schema(load_schema(schema_folder() / f"{schema_name(t)}.avsc"))
    for t in EVENT_TYPES
}


def by_fastavro(schema: object, value: Any) -> bytes:
    """The datum that fastavro writes."""
    buffer = io.BytesIO()
    cast(Any, fastavro).schemaless_writer(buffer, schema, value)
    return buffer.getvalue()
