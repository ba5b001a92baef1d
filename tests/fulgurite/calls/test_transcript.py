"""Whatever API a call came by, a reward function reads one form of what was said."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest

from fulgurite.calls.transcript import answer_of, messages_of, shown
from fulgurite.events import LlmCall
from tests.synthetic import make_call

TOOL_CALL = {"id": "c1", "type": "function", "function": {"name": "calc", "arguments": '{"a": 1}'}}


ASKED: list[tuple[str, Any, list[Any]]] = [
    (
        "chat.completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, 3]},
        [{"role": "user", "content": [{"type": "image_url"}]}],
    ),
    ("completions", {"prompt": "2+2="}, [{"role": "user", "content": "2+2="}]),
    ("completions", {"prompt": [1, 2]}, []),
    (
        "responses",
        {"instructions": "be brief", "input": "hi"},
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
    ),
    ("responses", {"input": None}, []),
    (
        "responses",
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "2"},
                        {"type": "input_text", "text": "+2?"},
                    ],
                },
                {"type": "reasoning", "summary": []},
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "let me "}],
                },
                {"role": "assistant", "content": "see"},
                {"type": "function_call", "call_id": "c1", "name": "calc", "arguments": '{"a": 1}'},
                {"type": "function_call_output", "call_id": "c1", "output": "4"},
                {"type": "custom_tool_call", "call_id": "c2", "name": "sh", "input": "ls"},
                {
                    "type": "custom_tool_call_output",
                    "call_id": "c2",
                    "output": [{"type": "input_text", "text": "a"}],
                },
                {"role": "user", "content": [{"type": "input_image"}]},
            ]
        },
        [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "let me see", "tool_calls": [TOOL_CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "4"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": "c2", "type": "function", "function": {"name": "sh", "arguments": "ls"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c2", "content": "a"},
            {"role": "user", "content": [{"type": "input_image"}]},
        ],
    ),
    (
        "messages",
        {
            "system": [{"type": "text", "text": "be brief"}],
            "messages": [
                {"role": "user", "content": "2+2?"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm"},
                        {"type": "text", "text": "wait"},
                        {"type": "tool_use", "id": "c1", "name": "calc", "input": {"a": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "4"}],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c2"},
                        {"type": "text", "text": "sure?"},
                    ],
                },
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": "and this?"}],
                },
            ],
        },
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "wait", "tool_calls": [TOOL_CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "4"},
            {"role": "tool", "tool_call_id": "c2", "content": None},
            {"role": "user", "content": "sure?"},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and this?"}]},
        ],
    ),
]


def call(api: str, body: Any, message: Any = None) -> LlmCall:
    made = make_call(turn=0, prompt=(1,), answers=[(2,)])
    choice = msgspec.structs.replace(made.choices[0], message=json.dumps(message))
    return msgspec.structs.replace(made, api=api, request=json.dumps(body), choices=(choice,))


@pytest.mark.parametrize(("api", "body", "messages"), ASKED)
def test_what_was_asked(api: str, body: Any, messages: list[Any]) -> None:
    assert messages_of(call(api, body)) == messages


@pytest.mark.parametrize(
    ("body", "content"),
    [
        ('{"messages": [{"content": "\\ud800"}]}', "\ud800"),
        ('{"messages": [{"content": Infinity}]}', math.inf),
    ],
)
def test_what_is_json_to_some_only_is_read(body: str, content: Any) -> None:
    asked = msgspec.structs.replace(call("chat.completions", {}), request=body)
    assert messages_of(asked) == [{"content": content}]


@pytest.mark.parametrize("body", ["[", "[1]", "[" * 100_000])
def test_what_cannot_be_read_has_no_messages(body: str) -> None:
    assert messages_of(msgspec.structs.replace(call("chat.completions", {}), request=body)) == []


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (
            {"role": "assistant", "content": "4", "refusal": None},
            {"role": "assistant", "content": "4", "refusal": None},
        ),
        ({"text": "4"}, {"role": "assistant", "content": "4"}),
        (
            {"role": "assistant", "content": [{"type": "text", "text": "4"}]},
            {"role": "assistant", "content": "4"},
        ),
        ({"role": "assistant", "content": []}, {"role": "assistant", "content": ""}),
        (
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c1", "name": "calc", "input": {"a": 1}}],
            },
            {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]},
        ),
        (
            {
                "role": "assistant",
                "output": [
                    {
                        "type": "function_call",
                        "call_id": "c1",
                        "name": "calc",
                        "arguments": '{"a": 1}',
                    },
                    {
                        "type": "message",
                        "role": "assistant",
                        "content": [{"type": "output_text", "text": "4"}],
                    },
                ],
            },
            {"role": "assistant", "content": "4", "tool_calls": [TOOL_CALL]},
        ),
        ({"role": "assistant", "output": []}, {"role": "assistant", "content": ""}),
        (None, None),
        (3, None),
    ],
)
def test_what_was_answered(message: Any, answer: Any) -> None:
    assert answer_of(call("chat.completions", {}, message).choices[0]) == answer


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (None, "[cannot be read]"),
        ({}, ""),
        ({"content": "four"}, "four"),
        ({"content": [{"type": "image_url"}]}, '{"type": "image_url"}'),
        ({"content": [{"type": "text", "text": "four"}, "and five"]}, "four and five"),
        ({"content": "let me see", "tool_calls": [TOOL_CALL]}, 'let me see calc({"a": 1})'),
        ({"content": None, "tool_calls": [TOOL_CALL]}, 'calc({"a": 1})'),
        ({"content": f"fulgurite:claim:{'0' * 64}:1234"}, "[1,234 bytes in the claims store]"),
    ],
)
def test_a_message_is_shown_as_one_text(message: dict[str, Any] | None, text: str) -> None:
    assert shown(message) == text
