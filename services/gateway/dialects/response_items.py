"""Items of OpenAI's responses: resolve what a request's `input` refers to."""

from __future__ import annotations

from typing import Any, cast

from services.gateway.dialects.capture import Json
from services.gateway.errors import InvalidRequest

_CALLS = {"function_call_output": "function_call", "custom_tool_call_output": "custom_tool_call"}
"""The type of an output, and of the call that it belongs to."""


def items_of(given: str | list[Any]) -> list[Any]:
    """An `input` as items."""
    return given if isinstance(given, list) else [{"role": "user", "content": given}]


def references(given: list[Any]) -> tuple[str, ...]:
    """The ids that an input refers to."""
    return tuple(
        str(cast(Json, item).get("id"))
        for item in given
        if isinstance(item, dict) and _is_reference(cast(Json, item))
    )


def with_items(found: list[Any], given: list[Any]) -> list[Any]:
    """The given items with each reference replaced by the item of `found` that it names. Raises
    InvalidRequest for a reference to none.
    """
    return [
        _referred(found, cast(Json, item))
        if isinstance(item, dict) and _is_reference(cast(Json, item))
        else item
        for item in given
    ]


def checked(before: list[Any], given: list[Any]) -> list[Any]:
    """The given items with each reference replaced by the item of `before` that it names.

    Raises InvalidRequest for a reference to none, and for a tool's output whose call comes nowhere
    before it.
    """
    items = with_items(before, given) if references(given) else given
    calls = _Calls(before)
    for item in items:
        if isinstance(item, dict):
            calls.follow(cast(Json, item))
    return items


class _Calls:
    """The tool calls that an output may belong to."""

    def __init__(self, before: list[Any]) -> None:
        self._made: set[tuple[str, str]] = set()
        for item in before:
            if isinstance(item, dict):
                self._note(cast(Json, item))

    def follow(self, item: Json) -> None:
        """Note a call; raise InvalidRequest for an output without one."""
        self._note(item)
        kind, call_id = item.get("type"), item.get("call_id")
        if (
            isinstance(kind, str)
            and kind in _CALLS
            and (_CALLS[kind], str(call_id)) not in self._made
        ):
            raise InvalidRequest(
                f"No tool call found for the {kind} with call_id {call_id!r}. Send the item of the "
                "call before it, or the `previous_response_id` of the response that made the call.",
                param="input",
            )

    def _note(self, item: Json) -> None:
        kind = item.get("type")
        if kind in ("function_call", "custom_tool_call"):
            self._made.add((str(kind), str(item.get("call_id"))))


def _is_reference(item: Json) -> bool:
    """Whether an item is a reference. Its type may be left out."""
    kind = item.get("type")
    return kind == "item_reference" or (
        kind is None and "role" not in item and isinstance(item.get("id"), str)
    )


def _referred(before: list[Any], reference: Json) -> Json:
    named = reference.get("id")
    for item in reversed(before):
        if isinstance(item, dict) and cast(Json, item).get("id") == named:
            return cast(Json, item)
    raise InvalidRequest(
        f"No item {named!r} to refer to. Send the item itself, or also the "
        "`previous_response_id` of the response that it belongs to.",
        param="input",
        code="item_not_found",
    )
