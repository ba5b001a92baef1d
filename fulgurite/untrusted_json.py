"""Reads JSON that agents and models wrote, without errors.

Values of an unexpected form are left out. All code that reads messages, tool calls, answers or
tasks uses this module. Nesting is bounded, so that the result depends only on the text, and not on
the depth of the caller's stack.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

import msgspec

Json = dict[str, Any]

DEEPEST = 100
"""Largest number of nested objects and lists. Tool schemas have some twenty levels; Python's stack
allows some 900.
"""


def parsed(text: Any) -> Any:
    """Parse a JSON text. Raises ValueError if it is not JSON, or nested deeper than `DEEPEST`."""
    if not isinstance(text, str):
        raise ValueError(f"{type(text).__name__} is not a JSON text")
    try:
        value = _decoded(text)
    except RecursionError as error:
        raise ValueError("nested too deeply to be parsed") from error
    # Counting brackets is quick, and most texts have few.
    if text.count("[") + text.count("{") > DEEPEST and is_deeper(value, DEEPEST):
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    return value


def encoded(value: Any) -> bytes:
    """Encode a value as one line of JSON in UTF-8. Unpaired surrogates are escaped."""
    try:
        return msgspec.json.encode(value)
    except (UnicodeEncodeError, OverflowError):
        return json.dumps(msgspec.to_builtins(value)).encode()


def is_deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists are nested more than `levels` deep."""
    level = _holders([value])
    for _ in range(levels):
        if not level:
            return False
        level = _holders(inner for one in level for inner in _inside(one))
    return bool(level)


def mapping(value: Any) -> Json:
    """The value if it is an object, else an empty object."""
    return cast(Json, value) if isinstance(value, dict) else {}


def mappings(value: Any) -> list[Json]:
    """The objects in a list; none if the value is not a list."""
    found: Iterable[Any] = cast("list[Any]", value) if isinstance(value, list) else ()
    return [cast(Json, one) for one in found if isinstance(one, dict)]


def called_functions(message: Json) -> list[Json]:
    """The `function` of each tool call of a chat message; an empty object if a call has none."""
    return [mapping(call.get("function")) for call in mappings(message.get("tool_calls"))]


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except ValueError:
        # msgspec takes a third of the time, but rejects NaN and unpaired surrogates, which agents
        # have sent.
        return json.loads(text)


def _holders(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def _inside(holder: Any) -> Iterable[Any]:
    return cast(Json, holder).values() if isinstance(holder, dict) else cast("list[Any]", holder)
