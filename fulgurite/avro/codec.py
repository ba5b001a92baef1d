"""Events ↔ bytes: Avro in Confluent's framing (`\\x00`, 4 bytes of schema id, big-endian, then the
datum).

Schema ids without a registry derive from the schema's CRC-64 fingerprint and are ≥ 2^30; a registry
counts from 1, so the two never collide and every codec reads both. With a registry, pass a
`SchemaSource` that looks up (and registers) ids. An episode's calls repeat one another: they lie in
its datum as deltas, and every reader gets them whole. Reading resolves a writer's schema of another
release against ours (FULL_TRANSITIVE evolution).
"""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, cast

import fastavro
import msgspec
from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

from fulgurite.avro.reader import Reader, reader_of
from fulgurite.avro.writer import writer_of
from fulgurite.episodes.episode_deltas import pack, prove, unpack
from fulgurite.errors import BrokenDelta, InvalidEvent, MalformedFrame, UnknownSchema
from fulgurite.events import EVENT_TYPES, Episode, Event

_MAGIC = 0
_DERIVED = 1 << 30
_HEADER = 5

JsonSchema = dict[str, Any]

# fastavro's own annotations are partial.
_read = cast(Callable[[io.BytesIO, Any, Any], Any], fastavro.schemaless_reader)  # pyright: ignore[reportUnknownMemberType]


_ALIKE = {"LlmCall": (("attempt", "error"), ("sampling", "logprobs_mode"))}
"""What calls of one agent have in common, mostly."""

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


class SchemaSource(Protocol):
    """Knows schema ids: a schema registry, or the derived ids of the released schemas."""

    def id_of(self, event_type: type[Event]) -> int:
        """The id to write events of this type with."""
        ...

    def schema_of(self, schema_id: int) -> JsonSchema | None:
        """The schema with this id, or None."""
        ...


def schema_folder() -> Path:
    """`schemas/avro`: inside the wheel, or in a source checkout."""
    shipped = Path(str(resources.files("fulgurite"))) / "schemas" / "avro"
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "schemas" / "avro"


def schema_name(event_type: type[Event]) -> str:
    """`LlmCall` → `llm_call`, the name of the schema's file."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", event_type.__name__).lower()


@cache
def load_schema(path: Path) -> JsonSchema:
    """Read one `.avsc`."""
    return cast(JsonSchema, json.loads(path.read_text(encoding="utf-8")))


def schema_fingerprint(schema: JsonSchema) -> str:
    """CRC-64-AVRO of the parsing canonical form, hex."""
    return fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")


def derived_id(schema: JsonSchema) -> int:
    """A schema id in [2^30, 2^31) from the schema's fingerprint."""
    return _DERIVED | (int(schema_fingerprint(schema), 16) & (_DERIVED - 1))


class ReleasedSchemas:
    """The schemas of this package, current and released, under derived ids."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or schema_folder()
        self._ids: dict[type[Event], int] = {}
        self._schemas: dict[int, JsonSchema] = {}
        for path in sorted(folder.glob("released/*/*.avsc")):
            schema = load_schema(path)
            self._schemas[derived_id(schema)] = schema
        for event_type in EVENT_TYPES:
            schema = load_schema(folder / f"{schema_name(event_type)}.avsc")
            self._ids[event_type] = derived_id(schema)
            self._schemas[self._ids[event_type]] = schema

    def id_of(self, event_type: type[Event]) -> int:
        """The derived id of the current schema."""
        return self._ids[event_type]

    def schema_of(self, schema_id: int) -> JsonSchema | None:
        """A current or released schema."""
        return self._schemas.get(schema_id)


class Codec:
    """Encodes and decodes every event type. Cheap to share, not to make: make one per process."""

    def __init__(self, registry: SchemaSource | None = None) -> None:
        self._released = ReleasedSchemas()
        self._registry = registry
        self._types = {event_type.__name__: event_type for event_type in EVENT_TYPES}
        self._ours: dict[type[Event], Any] = {}
        for event_type in EVENT_TYPES:
            schema = self._released.schema_of(self._released.id_of(event_type))
            self._ours[event_type] = parse_schema(cast(JsonSchema, schema))
        self._writers = {event_type: writer_of(schema) for event_type, schema in self._ours.items()}
        self._frames = {
            t: b"\x00" + (registry or self._released).id_of(t).to_bytes(4, "big")
            for t in EVENT_TYPES
        }
        self._compiled: dict[type[Event], Reader] = {}
        self._readers: dict[int, tuple[type[Event], Any, Any]] = {}

    def encode(self, event: Event) -> bytes:
        """Raises InvalidEvent when a field does not fit the schema."""
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
        """Raises MalformedFrame, UnknownSchema or InvalidEvent.

        `packed`: the calls of an episode stay deltas of one another, for those who hold many
        (`fulgurite.episodes.episode_deltas.unpack` makes them whole).
        """
        if len(data) < _HEADER or data[0] != _MAGIC:
            raise MalformedFrame(
                f"{len(data)} bytes without Confluent's header (0x00 and a schema id)"
            )
        event_type, writer, reader = self._reader(int.from_bytes(data[1:_HEADER], "big"))
        try:
            event = (
                self._read_ours(data, event_type)
                if reader is None
                else _resolved(data, event_type, writer, reader)
            )
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

    def _read_ours(self, data: bytes, event_type: type[Event]) -> Event:
        read = self._compiled.get(event_type)
        if read is None:
            # Not before it is needed: a process reads few of all types.
            read = self._compiled[event_type] = reader_of(
                self._ours[event_type], event_type, _ALIKE
            )
        event, end = read(data, _HEADER)
        if end > len(data):
            raise EOFError(f"{end - len(data)} bytes are missing at the end")
        return event

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

    def _reader(self, schema_id: int) -> tuple[type[Event], Any, Any]:
        known = self._readers.get(schema_id)
        if known is not None:
            return known
        schema = self._released.schema_of(schema_id)
        if schema is None and self._registry is not None:
            schema = self._registry.schema_of(schema_id)
        if schema is None:
            raise UnknownSchema(
                f"schema id {schema_id} is neither released with this version nor known to a "
                f"schema registry"
            )
        event_type = self._types.get(str(schema.get("name", "")).rsplit(".", 1)[-1])
        if event_type is None:
            raise UnknownSchema(
                f"schema id {schema_id} is a {schema.get('name')!r}, which is no event of ours"
            )
        ours = self._ours[event_type]
        same = to_parsing_canonical_form(schema) == to_parsing_canonical_form(ours)
        # A reader schema that differs costs a lot, so it is given only where it does.
        self._readers[schema_id] = (
            event_type,
            ours if same else parse_schema(schema),
            None if same else ours,
        )
        return self._readers[schema_id]


def _resolved(data: bytes, event_type: type[Event], writer: Any, reader: Any) -> Event:
    """An event of another release."""
    return msgspec.convert(
        _read(io.BytesIO(data[_HEADER:]), writer, reader), event_type, builtin_types=(bytes,)
    )


_fingerprints: dict[type[Event], bytes] = {}


def _fingerprint_of(event_type: type[Event], schema: Mapping[str, Any]) -> bytes:
    if event_type not in _fingerprints:
        _fingerprints[event_type] = schema_fingerprint(dict(schema)).encode()
    return _fingerprints[event_type]
