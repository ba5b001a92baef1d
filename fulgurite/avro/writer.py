"""Compiles writers of Avro's binary encoding, one per schema.

`writer_of(schema)(out, value)` appends the datum of a value to `out`.

Writes what fastavro writes, byte for byte (a test holds it), but reads the attributes of our own
structs instead of dictionaries made of them, and asks of a union only whether the value is None. A
record becomes a function of plain Python that writes most fields by itself: it takes a fifth of the
time. So unions are `["null", something]`, as all of ours are. A value that does not fit raises
TypeError, ValueError, AttributeError, LookupError, OverflowError or struct.error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

Writer = Callable[[bytearray, Any], None]

_double = struct.Struct("<d").pack


def _varint(number: int) -> bytes:
    """Zigzag, seven bits a byte, the lowest first."""
    left = number << 1 ^ number >> 63
    if left >> 35 and not left >> 42:
        # Six bytes: what milliseconds of our time take.
        low = (
            left & 127 | 128,
            left >> 7 & 127 | 128,
            left >> 14 & 127 | 128,
            left >> 21 & 127 | 128,
            left >> 28 & 127 | 128,
        )
        return bytes((*low, left >> 35))
    data = bytearray()
    while left > 0x7F:
        data.append(left & 0x7F | 0x80)
        left >>= 7
    data.append(left)
    return bytes(data)


_SHORT = tuple(_varint(number) for number in range(8192))
"""Lengths, indices and places in a row, mostly."""


def writer_of(schema: object) -> Writer:
    """The writer of a schema as fastavro parses it: names are full, a name is spelled out before it
    is used.
    """
    return _writer(schema, {})


def _writer(schema: object, named: dict[str, Writer]) -> Writer:
    if isinstance(schema, str):
        return _PLAIN[schema] if schema in _PLAIN else named[schema]
    if isinstance(schema, list):
        return _optional(cast("list[object]", schema), named)
    known = cast("dict[str, Any]", schema)
    return (
        _COMPOSED[known["type"]](known, named)
        if known["type"] in _COMPOSED
        else _writer(known["type"], named)
    )


def _write_long(out: bytearray, value: int) -> None:
    if 0 <= value < 8192:
        out += _SHORT[value]
    elif -(1 << 63) <= value < 1 << 63:
        out += _varint(value)
    else:
        raise OverflowError(f"{value} has more than 64 bits")


def _write_int(out: bytearray, value: int) -> None:
    if not -(1 << 31) <= value < 1 << 31:
        raise OverflowError(f"{value} has more than 32 bits")
    _write_long(out, value)


def _write_bytes(out: bytearray, value: bytes) -> None:
    size = len(value)
    out += _SHORT[size] if size < 8192 else _varint(size)
    out += value


def _write_string(out: bytearray, value: str) -> None:
    data = value.encode()
    size = len(data)
    out += _SHORT[size] if size < 8192 else _varint(size)
    out += data


def _write_double(out: bytearray, value: float) -> None:
    out += _double(value)


def _write_boolean(out: bytearray, value: bool) -> None:
    out.append(1 if value else 0)


_PLAIN: Mapping[str, Writer] = {
    "int": _write_int,
    "long": _write_long,
    "bytes": _write_bytes,
    "string": _write_string,
    "double": _write_double,
    "boolean": _write_boolean,
}


def _optional(schema: Sequence[object], named: dict[str, Writer]) -> Writer:
    inner = _writer(_of_union(schema), named)

    def write(out: bytearray, value: Any) -> None:
        if value is None:
            out.append(0)
        else:
            out.append(2)
            inner(out, value)

    return write


def _of_union(schema: Sequence[object]) -> object:
    null, other = schema
    if null != "null":
        raise ValueError(f"the union {schema} is not of null and something else")
    return other


def _enum(schema: Mapping[str, Any], named: dict[str, Writer]) -> Writer:
    indices = {symbol: _SHORT[index] for index, symbol in enumerate(schema["symbols"])}

    def write(out: bytearray, value: str) -> None:
        out += indices[value]

    named[schema["name"]] = write
    return write


def _record(schema: Mapping[str, Any], named: dict[str, Writer]) -> Writer:
    known: dict[str, Any] = {
        "short": _SHORT,
        "varint": _varint,
        "write_int": _write_int,
        "write_long": _write_long,
        "pack_double": _double,
    }
    lines = ["def write(out, value):"]
    for field in schema["fields"]:
        lines += [
            f"    item = value.{field['name']}",
            *_indented(_lines(field["type"], named, known)),
        ]
    made: dict[str, Any] = {}
    exec("\n".join(lines), known, made)  # as dataclasses are made: of names from our schemas only
    named[schema["name"]] = made["write"]
    return made["write"]


def _lines(schema: object, named: dict[str, Writer], known: dict[str, Any]) -> list[str]:
    """Lines that write `item`, which is of this schema."""
    if isinstance(schema, list):
        inner = _lines(_of_union(cast("list[object]", schema)), named, known)
        return ["if item is None: out.append(0)", "else:", "    out.append(2)", *_indented(inner)]
    if isinstance(schema, str) and schema in _WRITTEN_THERE:
        return _WRITTEN_THERE[schema]
    name = f"write_{len(known)}"
    known[name] = _writer(schema, named)
    return [f"{name}(out, item)"]


_BYTES = ["size = len(item)", "out += short[size] if size < 8192 else varint(size)", "out += item"]

_WRITTEN_THERE = {
    "string": ["item = item.encode()", *_BYTES],
    "bytes": _BYTES,
    "int": ["if 0 <= item < 8192: out += short[item]", "else: write_int(out, item)"],
    "long": ["if 0 <= item < 8192: out += short[item]", "else: write_long(out, item)"],
    "double": ["out += pack_double(item)"],
    "boolean": ["out.append(1 if item else 0)"],
}
"""What most fields are: to call a function for each would take longer than to write it."""


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _array(schema: Mapping[str, Any], named: dict[str, Writer]) -> Writer:
    inner = _writer(schema["items"], named)

    def write(out: bytearray, value: Sequence[Any]) -> None:
        if value:
            _write_long(out, len(value))
            for item in value:
                inner(out, item)
        out.append(0)

    return write


def _map(schema: Mapping[str, Any], named: dict[str, Writer]) -> Writer:
    inner = _writer(schema["values"], named)

    def write(out: bytearray, value: Mapping[str, Any]) -> None:
        if value:
            _write_long(out, len(value))
            for name, item in value.items():
                _write_string(out, name)
                inner(out, item)
        out.append(0)

    return write


_COMPOSED: Mapping[str, Callable[[Mapping[str, Any], dict[str, Writer]], Writer]] = {
    "enum": _enum,
    "record": _record,
    "array": _array,
    "map": _map,
}
