"""Compiles readers of Avro's binary encoding, one per schema.

`reader_of(schema, type)(data, at)` gives our struct at that place, and where it ends.

Reads what fastavro reads, to the same values (a test holds it), but makes our own structs instead
of dictionaries to make them of. Each record becomes a function of plain Python: one byte or two say
how long most things are, and no function is called for it. Bytes that are no datum raise
ValueError, IndexError or struct.error, never an endless loop; who reads a whole datum checks that
it ends within `data`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec
from msgspec import inspect

Reader = Callable[[bytes, int], tuple[Any, int]]

_MOST_BYTES = 10
"""Of a varint of 64 bits."""

_double = struct.Struct("<d").unpack_from


def _long(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint and where it ends."""
    number = 0
    for shift in range(0, 7 * _MOST_BYTES, 7):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
    raise ValueError(f"a number of more than {_MOST_BYTES} bytes ends at byte {at}")


def _size(data: bytes, at: int) -> tuple[int, int]:
    """A length and where what it tells of begins."""
    size, at = _long(data, at)
    if not 0 <= size <= len(data) - at:
        raise ValueError(f"{size} bytes at byte {at} of {len(data)}")
    return size, at


def _count(data: bytes, at: int) -> tuple[int, int]:
    """The items of the next block; a negative number is followed by the block's size in bytes."""
    count, at = _long(data, at)
    if count < 0:
        _, at = _long(data, at)
    return abs(count), at


def reader_of(schema: object, event_type: type[msgspec.Struct]) -> Reader:
    """The reader of a record as fastavro parses its schema: names are full, a name is spelled out
    before it is used.
    """
    return _Compiler().record(
        cast("dict[str, Any]", schema), cast(inspect.StructType, inspect.type_info(event_type))
    )


class _Compiler:
    """Writes a function for each record, and what it refers to under names."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {
            "_long": _long,
            "_size": _size,
            "_count": _count,
            "_double": _double,
        }
        self._schemas: dict[str, Mapping[str, Any]] = {}

    def record(self, schema: Mapping[str, Any], told: inspect.StructType) -> Reader:
        """The function of a record."""
        self._schemas[schema["name"]] = schema
        types = {field.name: field.type for field in told.fields}
        lines = ["def read(data, at):"]
        for field in schema["fields"]:
            read = self._read(f"v_{field['name']}", field["type"], types[field["name"]])
            lines += self._indented(read)
        values = ", ".join(f"{field['name']}=v_{field['name']}" for field in schema["fields"])
        lines.append(f"    return {self._name(told.cls)}({values}), at")
        made: dict[str, Any] = {}
        exec(
            "\n".join(lines), self._known, made
        )  # as dataclasses are made: of names and types from our schemas only
        return made["read"]

    def _read(self, to: str, schema: Any, told: inspect.Type) -> list[str]:
        """Lines that read a value of the schema into the variable `to`."""
        if isinstance(schema, list):
            return self._optional(to, cast("list[Any]", schema), cast(inspect.UnionType, told))
        if isinstance(schema, str):
            return (
                _PLAIN[schema](to)
                if schema in _PLAIN
                else self._read(to, self._schemas[schema], told)
            )
        known = cast("dict[str, Any]", schema)
        if known["type"] == "enum":
            self._schemas[known["name"]] = known
            members = tuple(cast(inspect.EnumType, told).cls(symbol) for symbol in known["symbols"])
            return [
                "n = data[at]; at += 1",
                "if n & 129: raise ValueError(f'no symbol at byte {at}')",
                f"{to} = {self._name(members)}[n >> 1]",
            ]
        if known["type"] == "record":
            return [
                f"{to}, at = "
                f"{self._name(self.record(known, cast(inspect.StructType, told)))}(data, at)"
            ]
        if known["type"] == "array":
            return self._array(to, known["items"], cast(inspect.VarTupleType, told).item_type)
        if known["type"] == "map":
            return self._map(to, known["values"], cast(inspect.DictType, told).value_type)
        return self._read(to, known["type"], told)

    def _optional(self, to: str, schema: list[Any], told: inspect.UnionType) -> list[str]:
        inner = next(one for one in told.types if not isinstance(one, inspect.NoneType))
        return [
            "n = data[at]; at += 1",
            f"if n == 0: {to} = None",
            "elif n == 2:",
            *self._indented(self._read(to, schema[1], inner)),
            "else: raise ValueError(f'no branch of a union at byte {at}')",
        ]

    def _array(self, to: str, items: Any, told: inspect.Type) -> list[str]:
        return self._blocks(
            [f"{to} = []"],
            [*self._read(f"{to}_", items, told), f"{to}.append({to}_)"],
            [f"{to} = tuple({to})"],
        )

    def _map(self, to: str, values: Any, told: inspect.Type) -> list[str]:
        item = [
            *_string(f"{to}_key"),
            *self._read(f"{to}_", values, told),
            f"{to}[{to}_key] = {to}_",
        ]
        return self._blocks([f"{to} = {{}}"], item, [])

    def _blocks(self, before: list[str], item: list[str], after: list[str]) -> list[str]:
        loop = [
            "count = data[at]; at += 1",
            "if count & 129: count, at = _count(data, at - 1)",
            "else: count >>= 1",
            "if not count: break",
            "for _ in range(count):",
            *self._indented(item),
        ]
        return [*before, "while True:", *self._indented(loop), *after]

    def _name(self, value: Any) -> str:
        name = f"k{len(self._known)}"
        self._known[name] = value
        return name

    @staticmethod
    def _indented(lines: list[str]) -> list[str]:
        return [f"    {line}" for line in lines]


def _number(to: str) -> list[str]:
    return [
        "n = data[at]; at += 1",
        "if n & 128:",
        f"    if data[at] & 128: {to}, at = _long(data, at - 1)",
        f"    else: n = n & 127 | data[at] << 7; at += 1; {to} = (n >> 1) ^ -(n & 1)",
        f"else: {to} = (n >> 1) ^ -(n & 1)",
    ]


def _bytes(to: str) -> list[str]:
    return [
        "n = data[at]; at += 1",
        "if n & 129:",
        "    if n & 1 or data[at] & 128: n, at = _size(data, at - 1)",
        "    else: n = (n & 127 | data[at] << 7) >> 1; at += 1",
        "else: n >>= 1",
        f"{to} = data[at : at + n]; at += n",
    ]


def _string(to: str) -> list[str]:
    return [*_bytes(to), f"{to} = {to}.decode()"]


def _boolean(to: str) -> list[str]:
    return [f"{to} = data[at] != 0; at += 1"]


def _real(to: str) -> list[str]:
    return [f"{to}, = _double(data, at); at += 8"]


_PLAIN: Mapping[str, Callable[[str], list[str]]] = {
    "int": _number,
    "long": _number,
    "bytes": _bytes,
    "string": _string,
    "double": _real,
    "boolean": _boolean,
}
