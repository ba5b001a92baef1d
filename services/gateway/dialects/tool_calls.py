"""Tool calls of a stream, put together from fragments.

Upstreams number calls from 0, from 1, all alike, with gaps, out of order or not at all. A
fragment's id says which call it belongs to, else its index: a new id begins a call, a fragment
without an id extends the last call of its index, and one with neither extends the last call.
"""

from __future__ import annotations

from typing import Any, cast

from services.gateway.dialects.capture import Json, arguments_parse, count
from services.gateway.dialects.numbered import Numbered

_APPENDED = ("arguments", "input")
"""Fields of a call's function that grow; the others are replaced."""


class ToolCalls:
    """The calls of one choice in the order of their indices; calls of equal indices keep the order
    in which they came.
    """

    def __init__(self) -> None:
        self._calls = Numbered()
        self._by_id: dict[str | int, Json] = {}
        self._last: tuple[int, Json | None] = (0, None)

    def add(self, fragment: Json) -> None:
        """Add a fragment of a call."""
        given, name = _index(fragment.get("index")), _id(fragment)
        index, call = (given, self._calls.last(given)) if given is not None else self._last
        if name in self._by_id:
            call = self._by_id[name]
        elif call is None or _begins(call, fragment, name, placed=given is not None):
            call = self._calls.begin(index, {})
        self._last = index, call
        if name is not None:
            self._by_id[name] = call
        _extend(call, fragment)

    def ordered(self) -> list[Json]:
        """The calls so far."""
        return self._calls.ordered()


def extend_function(function: Json, piece: Json) -> None:
    """Add a piece of a function's call: arguments grow, the name is replaced."""
    for name, value in piece.items():
        known = function.get(name)
        if name in _APPENDED and isinstance(known, str) and isinstance(value, str):
            function[name] = known + value
        elif value or name not in function:
            function[name] = value


def _extend(call: Json, fragment: Json) -> None:
    for name, value in fragment.items():
        known = call.get(name)
        if name == "index":
            continue
        if isinstance(value, dict):
            target = call[name] = cast(Json, known) if isinstance(known, dict) else {}
            extend_function(target, cast(Json, value))
        elif value:
            call[name] = value


def _begins(call: Json, fragment: Json, name: str | int | None, *, placed: bool) -> bool:
    """Whether a fragment begins another call than `call`: the last of its index (or the last at
    all), whose id it does not have.
    """
    before, now = _function(call), _function(fragment)
    if name is not None and _id(call) is not None:
        return True
    if not now.get("name") or not before.get("name"):
        return False
    # A second call without an id: complete arguments do not grow, and without an index another name
    # is another call.
    is_complete = bool(before.get("arguments")) and arguments_parse(before.get("arguments"))
    return (is_complete and bool(now.get("arguments"))) or (
        not placed and now["name"] != before["name"]
    )


def _function(call: Json) -> Json:
    function = call.get("function")
    return cast(Json, function) if isinstance(function, dict) else {}


def _id(call: Json) -> str | int | None:
    name = call.get("id")
    return name if isinstance(name, str | int) and name else None


def _index(value: Any) -> int | None:
    """The index, also from text; None for anything else."""
    return count(
        int(value)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10
        else value
    )
