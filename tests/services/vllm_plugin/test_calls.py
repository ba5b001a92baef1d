"""The tiny call format: what is a call, what is prose, and that nothing a model writes is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vllm_plugin.calls import Call, Tools, may_be_calls_alone, parse, raw_parameter, render

CALC: dict[str, Any] = {
    "type": "object",
    "properties": {"expression": {"type": "string"}},
    "required": ["expression"],
}
LOOK_UP: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
}
TOOLS: Tools = {
    "calc": CALC,
    "weather": LOOK_UP,
    "now": {"type": "object", "properties": {}},
    "bare": {},
}


def calc(expression: str) -> Call:
    return Call("calc", json.dumps({"expression": expression}, ensure_ascii=False))


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("calc(3+8)", None, [calc("3+8")]),
        ("calc((3+8)*2)", None, [calc("(3+8)*2")]),
        ("calc()", None, [calc("")]),
        ("calc(3+8)\ncalc(1)", None, [calc("3+8"), calc("1")]),
        ("calc(3\n+8)", None, [calc("3\n+8")]),
        ("now()", None, [Call("now", "{}")]),
        ("bare()", None, [Call("bare", "{}")]),
        (
            'weather({"city": "Ulm", "days": 2})',
            None,
            [Call("weather", '{"city": "Ulm", "days": 2}')],
        ),
        # A call, but not as the template writes it: the whole text is kept as content.
        (" calc(3+8)", " calc(3+8)", [calc("3+8")]),
        ("calc(3+8)\n", "calc(3+8)\n", [calc("3+8")]),
        ("Let me see.\ncalc(3+8)", "Let me see.\ncalc(3+8)", [calc("3+8")]),
        (
            'weather({"city":"Ulm"})',
            'weather({"city":"Ulm"})',
            [Call("weather", '{"city": "Ulm"}')],
        ),
        # No calls.
        ("answer: 11", "answer: 11", []),
        ("", "", []),
        ("calc(3+8", "calc(3+8", []),
        ("calc 3+8", "calc 3+8", []),
        ("calc(3+8)\nresult: 11", "calc(3+8)\nresult: 11", []),
        ("I use calc(3+8)", "I use calc(3+8)", []),
        ("other(3+8)", "other(3+8)", []),
        ("weather(Ulm)", "weather(Ulm)", []),
        ("weather([1])", "weather([1])", []),
    ],
)
def test_parse(text: str, content: str | None, calls: list[Call]) -> None:
    assert parse(text, TOOLS) == (content, tuple(calls))


@given(
    st.text(),
    st.sampled_from(["", " ", "calc(", "calc(1)\n"]),
    st.sampled_from(["", ")", ")\n", " "]),
)
def test_what_was_written_can_be_rendered_again(middle: str, before: str, after: str) -> None:
    text = before + middle + after
    reply = parse(text, TOOLS)
    assert (render(reply.calls, TOOLS) if reply.content is None else reply.content) == text


@given(
    st.lists(st.sampled_from(["calc(", "3+8", ")", "\n", " ", "weather(", "x"]), max_size=6).map(
        "".join
    )
)
def test_whatever_becomes_calls_alone_was_withheld_from_the_start(text: str) -> None:
    if parse(text, TOOLS).content is None:
        assert all(may_be_calls_alone(text[:length], TOOLS) for length in range(len(text) + 1))


def test_prose_flows() -> None:
    assert not may_be_calls_alone("an", TOOLS)
    assert not may_be_calls_alone(" calc(", TOOLS)
    assert may_be_calls_alone("ca", TOOLS)


def test_only_a_lone_string_is_passed_raw() -> None:
    assert raw_parameter(CALC) == "expression"
    assert raw_parameter({"properties": {"n": {"type": "integer"}}}) is None
    assert raw_parameter(LOOK_UP) is None
    assert raw_parameter({}) is None
