"""Hypothesis strategies for every event, made from the Python types and bounded by the Avro ones."""

from __future__ import annotations

from typing import Any, cast

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from fulgurite.avro.schemas import JsonSchema
from fulgurite.events import Episode, Event
from tests.contract.avro_types import current, names, resolve

_INT_BITS = {"int": 31, "long": 63}


def events(event_type: type[Event]) -> st.SearchStrategy[Event]:
    """Any event of a type that its schema can hold.

    Of the calls of an episode none is a delta of an earlier one: that is the packed form, of which
    the codec makes whole calls.
    """
    schema = current(event_type)
    strategy = cast("st.SearchStrategy[Event]", _record(event_type, schema, names(schema)))
    return strategy.filter(lambda event: not isinstance(event, Episode) or not _is_packed(event))


def _is_packed(episode: Episode) -> bool:
    earlier: set[str] = set()
    for call in episode.calls:
        if call.parent is not None and call.parent.call_id in earlier:
            return True
        earlier.add(call.call_id)
    return False


def _record(
    struct: type[msgspec.Struct], schema: JsonSchema, known: dict[str, JsonSchema]
) -> st.SearchStrategy[Any]:
    avro = {field["name"]: field["type"] for field in schema["fields"]}
    return st.builds(
        struct,
        **{
            f.name: _value(inspect.type_info(f.type), avro[f.name], known)
            for f in msgspec.structs.fields(struct)
        },
    )


def _value(kind: inspect.Type, schema: Any, known: dict[str, JsonSchema]) -> st.SearchStrategy[Any]:
    schema = resolve(schema, known)
    match kind:
        case inspect.StrType():
            return st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
        case inspect.IntType():
            bits = _INT_BITS[schema]
            return st.integers(-(1 << bits), (1 << bits) - 1)
        case inspect.FloatType():
            return st.floats(allow_nan=False, allow_infinity=False)
        case inspect.BoolType():
            return st.booleans()
        case inspect.BytesType():
            return st.binary(max_size=16)
        case inspect.EnumType():
            return st.sampled_from(list(kind.cls))
        case inspect.StructType():
            return _record(kind.cls, schema, known)
        case inspect.VarTupleType():
            return st.lists(_value(kind.item_type, schema["items"], known), max_size=2).map(tuple)
        case inspect.DictType():
            return st.dictionaries(
                st.text(max_size=4), _value(kind.value_type, schema["values"], known), max_size=2
            )
        case inspect.UnionType():
            branch = next(t for t in kind.types if not isinstance(t, inspect.NoneType))
            return st.none() | _value(branch, schema[1], known)
        case _:
            raise TypeError(f"no strategy for {kind}")
