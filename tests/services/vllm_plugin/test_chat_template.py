"""The chat template writes what the parser reads, and a turn's rendering repeats what was
generated.
"""

# transformers is annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from services.local_stack.chat_format import FULGURITE_TEMPLATE
from services.local_stack.model import tiny_model
from services.vllm_plugin.calls import Call, parse, render

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "calc",
            "description": "Evaluates an expression.",
            "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
        },
    },
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    },
]
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
QUESTION = [
    {"role": "system", "content": "Use the calculator."},
    {"role": "user", "content": "3 and 8?"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tiny_model())


def rendered(
    tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = TOOLS
) -> str:
    template = FULGURITE_TEMPLATE.read_text()
    return tokenizer.apply_chat_template(
        messages, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=True
    )


def assistant(content: str | None, *calls: Call) -> dict[str, Any]:
    """As vLLM hands it to a template: arguments parsed."""
    named = [
        {
            "type": "function",
            "function": {"name": call.name, "arguments": json.loads(call.arguments)},
        }
        for call in calls
    ]
    return {
        "role": "assistant",
        "content": content or "",
        **({"tool_calls": named} if named else {}),
    }


def test_a_whole_conversation(tokenizer: Any) -> None:
    call = parse("calc(3+8)", SCHEMAS).calls
    messages = [
        *QUESTION,
        assistant(None, *call),
        {"role": "tool", "content": "11"},
        assistant("answer: 11"),
    ]
    assert rendered(tokenizer, messages) == (
        "<|im_start|>system\nUse the calculator.\nTools:\ncalc(expression): Evaluates an "
        "expression.\nweather(city, days)<|im_end|>\n<|im_start|>user\n3 and "
        "8?<|im_end|>\n<|im_start|>assistant\ncalc(3+8)<|im_end|>\n<|im_start|>user\nresult: "
        "11<|im_end|>\n<|im_start|>assistant\nanswer: 11<|im_end|>\n<|im_start|>assistant\n"
    )


def test_without_a_system_line_and_tools(tokenizer: Any) -> None:
    assert rendered(tokenizer, QUESTION[1:], None) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|>\n<|im_start|>user\n3 and 8?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_calls_beside_foreign_content_are_written_below_it(tokenizer: Any) -> None:
    message = assistant("Let me see.", Call("calc", '{"expression": "1"}'))
    assert "Let me see.\ncalc(1)<|im_end|>" in rendered(tokenizer, [*QUESTION, message])


def test_undeclared_tools_of_earlier_turns_are_written_all_the_same(tokenizer: Any) -> None:
    message = assistant(
        None, Call("calc", '{"expression": "1"}'), Call("go", '{"x": 1, "y": 2}'), Call("now", "{}")
    )
    assert 'calc(1)\ngo({"x": 1, "y": 2})\nnow()<|im_end|>' in rendered(
        tokenizer, [*QUESTION, message], None
    )


_PIECES = [
    "calc(",
    "weather(",
    ")",
    "3+8",
    " ",
    "\n",
    '{"city": "Ulm", "days": 2}',
    '{"city":"é"}',
    "answer: 11",
    "'",
    "<b>",
    "{{ x }}",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=5).map("".join))
def test_the_next_prompt_repeats_what_was_generated(tokenizer: Any, text: str) -> None:
    reply = parse(text, SCHEMAS)
    first = rendered(tokenizer, QUESTION)
    second = rendered(
        tokenizer,
        [*QUESTION, assistant(reply.content, *reply.calls), {"role": "tool", "content": "11"}],
    )
    assert second.startswith(f"{first}{text}<|im_end|>\n")
    if reply.content is None:
        assert render(reply.calls, SCHEMAS) == text
