"""Encodes events to bytes and back: Avro in Confluent's framing.

A frame is `\\x00`, 4 bytes of schema id (big-endian), then the datum. Schema ids come from the
schemas of this release (`fulgurite.avro.schemas`), or from a registry: pass a `SchemaSource` that
looks up and registers ids. The calls of an episode repeat one another: they lie in its datum as
deltas, and every reader gets them complete. Bytes that another release wrote are resolved against
our schema (FULL_TRANSITIVE evolution).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Literal, cast

import msgspec
from fastavro.schema import parse_schema, to_parsing_canonical_form

from fulgurite.avro import reader, reference, writer
from fulgurite.avro.reader import Reader
from fulgurite.avro.schemas import JsonSchema, ReleasedSchemas, SchemaSource, schema_fingerprint
from fulgurite.episodes.episode_deltas import pack, prove, unpack
from fulgurite.errors import BrokenDelta, InvalidEvent, MalformedFrame, UnknownSchema
from fulgurite.events import EVENT_TYPES, Episode, Event

_MAGIC = 0
_HEADER = 5

AvroImplementation = Literal["compiled", "fastavro"]
"""Compiled functions, or fastavro: the same bytes and values, but slower."""

_UNREADABLE = (
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    msgspec.ValidationError,
)


class Codec:
    """Encodes and decodes every event type. Expensive to make: make one per process."""

    def __init__(
        self,
        registry: SchemaSource | None = None,
        *,
        implementation: AvroImplementation = "compiled",
    ) -> None:
        self.implementation: AvroImplementation = implementation
        self._released = ReleasedSchemas()
        self._registry = registry
        self._types = {event_type.__name__: event_type for event_type in EVENT_TYPES}
        self._ours: dict[type[Event], Any] = {}
        for event_type in EVENT_TYPES:
            schema = self._released.schema_of(self._released.id_of(event_type))
            self._ours[event_type] = parse_schema(cast(JsonSchema, schema))
        writer_of = writer.writer_of if implementation == "compiled" else reference.writer_of
        self._reader_of = reader.reader_of if implementation == "compiled" else reference.reader_of
        self._writers = {event_type: writer_of(schema) for event_type, schema in self._ours.items()}
        self._frames = {
            t: b"\x00" + (registry or self._released).id_of(t).to_bytes(4, "big")
            for t in EVENT_TYPES
        }
        self._readers: dict[int, tuple[type[Event], Reader]] = {}

    def encode(self, event: Event) -> bytes:
        """Encode an event. Raises InvalidEvent if a field does not fit the schema."""
        if isinstance(event, Episode):
            event = msgspec.structs.replace(event, calls=pack(event.calls))
        out = bytearray(self._frames[type(event)])
        try:
            self._writers[type(event)](out, event)
        except (
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
            OverflowError,
            struct.error,
        ) as error:
            raise InvalidEvent(
                f"{type(event).__name__} {event.event_id} does not fit its schema: {error}"
            ) from error
        return bytes(out)

    def decode(self, data: bytes, *, packed: bool = False) -> Event:
        """Decode an event. Raises MalformedFrame, UnknownSchema or InvalidEvent.

        `packed`: leave an episode's calls as deltas of one another, to save memory
        (`fulgurite.episodes.episode_deltas.unpack` expands them).
        """
        if len(data) < _HEADER or data[0] != _MAGIC:
            raise MalformedFrame(
                f"{len(data)} bytes without Confluent's header (0x00 and a schema id)"
            )
        event_type, read = self._reader(int.from_bytes(data[1:_HEADER], "big"))
        try:
            event: Event
            event, end = read(data, _HEADER)
            if end > len(data):
                raise EOFError(f"{end - len(data)} bytes are missing at the end")
            if isinstance(event, Episode):
                if not packed:
                    return msgspec.structs.replace(event, calls=unpack(event.calls))
                prove(event.calls)
            return event
        except BrokenDelta as error:
            raise InvalidEvent(str(error)) from error
        except _UNREADABLE as error:
            raise InvalidEvent(
                f"bytes do not fit the schema of {event_type.__name__}: {error}"
            ) from error

    def headers(self, event: Event, traceparent: str | None = None) -> dict[str, bytes]:
        """Record headers: event type, event id, schema fingerprint and, if any, trace context."""
        schema = self._released.schema_of(self._released.id_of(type(event)))
        headers = {
            "event-type": type(event).__name__.encode(),
            "event-id": event.event_id.encode(),
            "schema-fingerprint": _fingerprint_of(type(event), cast(JsonSchema, schema)),
        }
        if traceparent is not None:
            headers["traceparent"] = traceparent.encode()
        return headers

    def _reader(self, schema_id: int) -> tuple[type[Event], Reader]:
        known = self._readers.get(schema_id)
        if known is not None:
            return known
        schema = self._released.schema_of(schema_id)
        if schema is None and self._registry is not None:
            schema = self._registry.schema_of(schema_id)
        if schema is None:
            raise UnknownSchema(
                f"schema id {schema_id} is neither in this release nor in the schema registry: "
                "update Fulgurite, or check which registry wrote it"
            )
        event_type = self._types.get(str(schema.get("name", "")).rsplit(".", 1)[-1])
        if event_type is None:
            raise UnknownSchema(
                f"schema id {schema_id} is a {schema.get('name')!r}, which is not an event type"
            )
        ours = self._ours[event_type]
        same = to_parsing_canonical_form(schema) == to_parsing_canonical_form(ours)
        # Readers are made when they are needed: a process reads few types. Resolving schemas is
        # slow, so it is done only if they differ.
        read = (
            self._reader_of(ours, event_type)
            if same
            else reference.reader_of(ours, event_type, parse_schema(schema))
        )
        self._readers[schema_id] = event_type, read
        return self._readers[schema_id]


_fingerprints: dict[type[Event], bytes] = {}


def _fingerprint_of(event_type: type[Event], schema: Mapping[str, Any]) -> bytes:
    if event_type not in _fingerprints:
        _fingerprints[event_type] = schema_fingerprint(dict(schema)).encode()
    return _fingerprints[event_type]
