"""Reads JSON that agents and models wrote, without errors.

What does not have the expected form is left out.

Everything that reads messages, tool calls, answers or tasks goes through here. Nesting is bounded,
so that what is read depends on the text alone and not on how deep the reader's own stack is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

import msgspec

Json = dict[str, Any]

DEEPEST = 100
"""Levels of objects and lists. Schemas of tools, the deepest that agents send, have some twenty;
Python's stack has room for some 900.
"""


def parsed(text: Any) -> Any:
    """What a JSON text says. Raises ValueError for what is no text, no JSON, or nested deeper than
    `DEEPEST`.
    """
    if not isinstance(text, str):
        raise ValueError(f"{type(text).__name__} is no JSON text")
    try:
        value = _decoded(text)
    except RecursionError as error:
        raise ValueError("nested too deep to be read") from error
    # Counting brackets is quick, and most texts have too few to be deep.
    if text.count("[") + text.count("{") > DEEPEST and is_deeper(value, DEEPEST):
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    return value


def encoded(value: Any) -> bytes:
    """The value as one line of JSON in UTF-8, whatever texts it holds: half a surrogate pair, which
    UTF-8 has not, is escaped.
    """
    try:
        return msgspec.json.encode(value)
    except (UnicodeEncodeError, OverflowError):
        return json.dumps(msgspec.to_builtins(value)).encode()


def is_deeper(value: Any, levels: int) -> bool:
    """Whether more than so many objects and lists lie within one another."""
    level = _holders([value])
    for _ in range(levels):
        if not level:
            return False
        level = _holders(inner for one in level for inner in _inside(one))
    return bool(level)


def mapping(value: Any) -> Json:
    """The value if it is an object, else an empty one."""
    return cast(Json, value) if isinstance(value, dict) else {}


def mappings(value: Any) -> list[Json]:
    """The objects of a list; none if it is no list."""
    found: Iterable[Any] = cast("list[Any]", value) if isinstance(value, list) else ()
    return [cast(Json, one) for one in found if isinstance(one, dict)]


def called_functions(message: Json) -> list[Json]:
    """The `function` of each tool call of a chat message; an empty object where a tool call has
    none.
    """
    return [mapping(call.get("function")) for call in mappings(message.get("tool_calls"))]


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except ValueError:
        # msgspec takes a third of the time, but reads neither NaN nor half a surrogate, which
        # agents have sent.
        return json.loads(text)


def _holders(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def _inside(holder: Any) -> Iterable[Any]:
    return cast(Json, holder).values() if isinstance(holder, dict) else cast("list[Any]", holder)
