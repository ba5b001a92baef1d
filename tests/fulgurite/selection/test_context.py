"""Which context cell a request is in."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from fulgurite.selection.context import cell_of, context_cell
from tests.synthetic import make_call

TOOLS = [{"type": "function", "function": {"name": "search"}}]


def asks(text: object, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize(
    ("body", "api", "cell"),
    [
        (asks("hi"), "chat.completions", "/short"),
        (asks("hi", tools=TOOLS), "chat.completions", "/short+tools"),
        (asks("hi", tools=[]), "chat.completions", "/short"),
        (asks("x" * 1_000), "chat.completions", "/medium"),
        (asks("é" * 500), "chat.completions", "/medium"),
        (asks([{"type": "text", "text": "x" * 8_000}]), "chat.completions", "/long"),
        (asks("x" * 64_000), "chat.completions", "/huge"),
        ({"input": "hi", "instructions": "x" * 2_000}, "responses", "/medium"),
        ({"system": "x" * 2_000, **asks("hi")}, "messages", "/medium"),
        ({"prompt": "x" * 2_000}, "completions", "/medium"),
        ({}, "chat.completions", "/short"),
        (asks(f"fulgurite:claim:{'a' * 64}:9000"), "chat.completions", "/long"),
    ],
)
def test_the_cell_is_the_size_of_the_opening_and_whether_tools_are_offered(
    body: dict[str, Any], api: str, cell: str
) -> None:
    assert context_cell("", body, api) == cell
    assert context_cell("planner", body, api) == f"planner{cell}"


def test_later_turns_are_in_the_cell_of_the_first() -> None:
    first = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    later = [
        *first,
        {"role": "assistant", "content": "x" * 9_000},
        {"role": "user", "content": "?"},
    ]
    cells = {
        context_cell("", {"messages": messages}, "chat.completions") for messages in (first, later)
    }
    assert cells == {"/short"}


def test_a_recorded_cell_counts_and_otherwise_the_request() -> None:
    call = msgspec.structs.replace(
        make_call(agent="planner"), request=json.dumps(asks("hi", tools=TOOLS)), cell=None
    )
    assert cell_of(call) == "planner/short+tools"
    assert cell_of(msgspec.structs.replace(call, cell="other/long")) == "other/long"
    assert cell_of(msgspec.structs.replace(call, request=None)) == "planner/"
