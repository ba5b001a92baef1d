"""Finds the Avro schemas of every event type, and the ids that frames carry.

Ids without a registry derive from the schema's CRC-64 fingerprint and are 2^30 or more. A registry
counts from 1, so the two never collide and every codec reads both.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, cast

from fastavro.schema import fingerprint, to_parsing_canonical_form

from fulgurite.events import EVENT_TYPES, Event

_DERIVED = 1 << 30

JsonSchema = dict[str, Any]


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
