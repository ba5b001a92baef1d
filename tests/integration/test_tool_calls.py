"""`tools=` and `tool_calls` through a real vLLM, streamed and not; the model is made to say what
the test wants parsed.

Turn 2's prompt begins with exactly the tokens of turn 1, prompt and completion.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.local_stack.vllm_local import LocalVllm
from tests.integration.vllm_http import VllmHttp

pytestmark = pytest.mark.engine

CALC = {"type": "object", "properties": {"expression": {"type": "string"}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "calc", "description": "Evaluates.", "parameters": CALC},
    }
]
QUESTION = [{"role": "user", "content": "3 and 8?"}]


def request(
    messages: list[dict[str, Any]], said: str, *, stream: bool = False, max_tokens: int = 64
) -> dict[str, Any]:
    return {
        "model": "policy",
        "messages": messages,
        "tools": TOOLS,
        "structured_outputs": {"choice": [said]},
        "max_tokens": max_tokens,
        "return_token_ids": True,
        "stream": stream,
    }


def streamed(vllm: VllmHttp, body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The deltas put together as a client does it, and the finish reason."""
    connection, response = vllm.open("POST", "/v1/chat/completions", body)
    lines = response.read().decode().split("\n\n")
    connection.close()
    content, calls, reason = "", list[dict[str, Any]](), ""
    for line in lines:
        if line.startswith("data: {"):
            (choice,) = json.loads(line.removeprefix("data: "))["choices"]
            content += choice["delta"].get("content") or ""
            calls += choice["delta"].get("tool_calls") or []
            reason = choice["finish_reason"] or reason
    return {"role": "assistant", "content": content or None, "tool_calls": calls}, reason


@pytest.mark.parametrize(
    ("said", "content", "expressions"),
    [
        ("calc(3+8)", None, ["3+8"]),
        ("calc(3+8)\ncalc((1+2)*3)", None, ["3+8", "(1+2)*3"]),
        (" calc(3+8)", " calc(3+8)", ["3+8"]),
        ("I see.\ncalc(3+8)\n", "I see.\ncalc(3+8)\n", ["3+8"]),
        ("calc(3+8) is 11", "calc(3+8) is 11", []),
        ("answer: 11", "answer: 11", []),
    ],
)
def test_what_the_model_said_is_parsed_and_repeated(
    vllm_tiny: LocalVllm, said: str, content: str | None, expressions: list[str]
) -> None:
    vllm = VllmHttp(vllm_tiny.port)
    answer = vllm.call("POST", "/v1/chat/completions", request(QUESTION, said))
    assert answer.status == 200, answer
    (choice,) = answer.body["choices"]
    message = choice["message"]
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    assert [
        json.loads(call["function"]["arguments"])["expression"] for call in calls
    ] == expressions
    assert message["content"] == content
    assert choice["finish_reason"] == ("tool_calls" if expressions else "stop")

    told, reason = streamed(vllm, request(QUESTION, said, stream=True))
    assert [call["function"] for call in told["tool_calls"]] == [call["function"] for call in calls]
    assert (told["content"], reason) == (content, choice["finish_reason"])

    first = answer.body["prompt_token_ids"] + choice["token_ids"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "11"} for call in calls] or [
        {"role": "user", "content": "Go on."}
    ]
    second = vllm.call(
        "POST", "/v1/chat/completions", request([*QUESTION, message, *results], "answer: 11")
    )
    assert second.status == 200, second
    assert second.body["prompt_token_ids"][: len(first)] == first


def test_a_call_that_was_cut_off_is_streamed_as_content(vllm_tiny: LocalVllm) -> None:
    vllm = VllmHttp(vllm_tiny.port)
    told, reason = streamed(vllm, request(QUESTION, "calc(3+8)", stream=True, max_tokens=6))
    assert (told["content"], told["tool_calls"], reason) == ("calc(3", [], "length")
