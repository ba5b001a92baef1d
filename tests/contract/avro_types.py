"""Reads a schema and a Python type side by side. Used by the contract tests and by the strategies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec
from msgspec import inspect

from fulgurite.avro.schemas import JsonSchema, load_schema, schema_folder, schema_name
from fulgurite.events import EVENT_TYPES, Event

PRIMITIVES: dict[type[inspect.Type], frozenset[str]] = {
    inspect.StrType: frozenset({"string"}),
    inspect.IntType: frozenset({"int", "long"}),
    inspect.FloatType: frozenset({"double"}),
    inspect.BoolType: frozenset({"boolean"}),
    inspect.BytesType: frozenset({"bytes"}),
}

RECORDS = tuple(EVENT_TYPES)


def current(event_type: type[Event]) -> JsonSchema:
    """The schema in the repository's current release."""
    return load_schema(schema_folder() / f"{schema_name(event_type)}.avsc")


def names(schema: Any, known: dict[str, JsonSchema] | None = None) -> dict[str, JsonSchema]:
    """Every named type within a schema, by full name."""
    known = {} if known is None else known
    if isinstance(schema, list):
        for branch in cast(list[Any], schema):
            names(branch, known)
    elif isinstance(schema, dict):
        one = cast(JsonSchema, schema)
        if "name" in one and one.get("type") in ("record", "enum"):
            known[full_name(one)] = one
        for part in ("items", "values", "type"):
            names(one.get(part), known)
        for field in one.get("fields", []):
            names(field["type"], known)
    return known


def full_name(schema: JsonSchema) -> str:
    """Namespace and name."""
    return f"{schema['namespace']}.{schema['name']}"


def resolve(schema: Any, known: dict[str, JsonSchema]) -> Any:
    """A reference by name → what it names."""
    return known[schema] if isinstance(schema, str) and schema in known else schema


def fields(
    event_type: type[Event],
) -> Iterator[
    tuple[str, msgspec.structs.FieldInfo, inspect.Type, JsonSchema, dict[str, JsonSchema]]
]:
    """Every field of an event, nested records included: where it is, its Python and its Avro side."""
    schema = current(event_type)
    yield from _record_fields(event_type.__name__, event_type, schema, names(schema))


def _record_fields(
    where: str, struct: type[msgspec.Struct], schema: JsonSchema, known: dict[str, JsonSchema]
) -> Iterator[
    tuple[str, msgspec.structs.FieldInfo, inspect.Type, JsonSchema, dict[str, JsonSchema]]
]:
    avro = {field["name"]: field for field in schema["fields"]}
    python = msgspec.structs.fields(struct)
    assert [field.name for field in python] == list(avro), f"{where}: fields or their order differ"
    for field in python:
        kind = inspect.type_info(field.type)
        yield f"{where}.{field.name}", field, kind, avro[field.name], known
        for nested, nested_schema in _nested(kind, avro[field.name]["type"], known):
            yield from _record_fields(f"{where}.{field.name}", nested, nested_schema, known)


def _nested(
    kind: inspect.Type, schema: Any, known: dict[str, JsonSchema]
) -> Iterator[tuple[type[msgspec.Struct], JsonSchema]]:
    schema = resolve(schema, known)
    match kind:
        case inspect.StructType():
            yield kind.cls, schema
        case inspect.VarTupleType():
            yield from _nested(kind.item_type, schema["items"], known)
        case inspect.UnionType():
            branch = next(t for t in kind.types if not isinstance(t, inspect.NoneType))
            yield from _nested(branch, schema[1], known)
        case _:
            pass
