"""The Avro files are the source; the Python types say the same, field by field."""

from __future__ import annotations

from enum import Enum
from typing import Any, cast

import msgspec
import pytest
from msgspec import inspect

from fulgurite.avro.schemas import JsonSchema, schema_folder, schema_name
from fulgurite.events import EVENT_TYPES, Event
from fulgurite.topics import TOPICS
from tests.contract.avro_types import PRIMITIVES, current, fields, names, resolve

every_event = pytest.mark.parametrize("event_type", EVENT_TYPES, ids=lambda t: t.__name__)


def test_every_schema_has_a_type_and_every_type_a_schema() -> None:
    assert {path.stem for path in schema_folder().glob("*.avsc")} == {
        schema_name(event_type) for event_type in EVENT_TYPES
    }


def test_every_event_is_carried_by_exactly_one_topic() -> None:
    carried = [event_type for topic in TOPICS for event_type in topic.carries]
    assert sorted(carried, key=lambda t: t.__name__) == sorted(
        EVENT_TYPES, key=lambda t: t.__name__
    )


@every_event
def test_every_field_has_the_same_type(event_type: type[Event]) -> None:
    for where, _field, kind, avro, known in fields(event_type):
        _assert_same(where, kind, avro["type"], known)


@every_event
def test_every_field_has_the_same_default(event_type: type[Event]) -> None:
    for where, field, kind, avro, _known in fields(event_type):
        assert field.required == ("default" not in avro), f"{where}: a default on one side only"
        if not field.required:
            python = (
                field.default_factory() if field.default is msgspec.NODEFAULT else field.default
            )
            assert msgspec.to_builtins(python, builtin_types=(bytes,)) == (
                tuple(avro["default"])
                if isinstance(kind, inspect.VarTupleType)
                else avro["default"]
            ), where


@every_event
def test_everything_is_documented(event_type: type[Event]) -> None:
    for where, _field, _kind, avro, _known in fields(event_type):
        assert avro.get("doc", "").strip(), f"{where} has no doc"
    for name, schema in names(current(event_type)).items():
        assert schema.get("doc", "").strip(), f"{name} has no doc"
        for symbol in schema.get("symbols", []):
            assert f"{symbol}: " in schema["doc"], (
                f"{name}: the doc does not say what {symbol} means"
            )


@every_event
def test_every_enum_has_the_same_symbols_and_a_default(event_type: type[Event]) -> None:
    for where, _field, kind, avro, known in fields(event_type):
        for enum, schema in _enums(kind, avro["type"], known):
            assert [member.value for member in enum] == schema["symbols"], where
            assert schema["default"] in schema["symbols"], (
                f"{where}: an enum without a default cannot gain a symbol"
            )


@every_event
def test_values_are_frozen(event_type: type[Event]) -> None:
    assert event_type.__struct_config__.frozen


def _assert_same(where: str, kind: inspect.Type, avro: Any, known: dict[str, JsonSchema]) -> None:
    avro = resolve(avro, known)
    match kind:
        case inspect.UnionType():
            assert [type(t) for t in kind.types if isinstance(t, inspect.NoneType)] == [
                inspect.NoneType
            ], where
            assert isinstance(avro, list), f"{where}: nullable in Python only"
            assert avro[0] == "null", f"{where}: null comes first, because it is the default"
            branch = next(t for t in kind.types if not isinstance(t, inspect.NoneType))
            _assert_same(where, branch, avro[1], known)
        case inspect.EnumType() | inspect.StructType():
            expected = "enum" if isinstance(kind, inspect.EnumType) else "record"
            assert (avro["type"], avro["name"]) == (
                expected,
                cast("type[Any]", kind.cls).__name__,
            ), where
        case inspect.VarTupleType():
            assert avro["type"] == "array", where
            _assert_same(where, kind.item_type, avro["items"], known)
        case inspect.DictType():
            assert isinstance(kind.key_type, inspect.StrType), where
            assert avro["type"] == "map", where
            _assert_same(where, kind.value_type, avro["values"], known)
        case _:
            assert avro in PRIMITIVES[type(kind)], where


def _enums(
    kind: inspect.Type, avro: Any, known: dict[str, JsonSchema]
) -> list[tuple[type[Enum], JsonSchema]]:
    avro = resolve(avro, known)
    match kind:
        case inspect.EnumType():
            return [(kind.cls, avro)]
        case inspect.UnionType():
            return [
                pair
                for t in kind.types
                if isinstance(t, inspect.EnumType)
                for pair in _enums(t, avro[1], known)
            ]
        case _:
            return []
