"""An agent that follows five instructions, one after the other, with a calculator: plain OpenAI
SDK.

Each turn is one tool call, and the tool's answer brings the next instruction. The number after the
fifth call is printed. The task, a JSON object with `start` and `steps`, is in the variable TASK or
on standard input.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from typing import Any

from openai import OpenAI

MAX_TOKENS = 20
_EXPRESSION = re.compile(r"(\d{1,6})\s*([-+*])\s*(\d{1,6})")

CALCULATOR: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calc",
        "description": "Works out an arithmetic expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "As in 12+7."}},
            "required": ["expression"],
        },
    },
}


def calculate(expression: str) -> str:
    """The value of a sum, difference or product of two numbers, or what is wrong with it."""
    found = _EXPRESSION.fullmatch(expression.strip())
    if found is None:
        return "error"
    left, operator, right = int(found[1]), found[2], int(found[3])
    return str({"+": left + right, "-": left - right, "*": left * right}[operator])


def tool_call(expression: str, number: int) -> dict[str, Any]:
    """A turn of the model, for the worked example."""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": "calc", "arguments": json.dumps({"expression": expression})},
            }
        ],
    }


def opening() -> list[dict[str, Any]]:
    """A worked example as earlier turns."""
    return [
        {"role": "system", "content": "Use the calculator for every step."},
        {"role": "user", "content": "You have 12. Add 7."},
        tool_call("12+7", 1),
        {"role": "tool", "tool_call_id": "call_1", "content": "19. Take away 4."},
        tool_call("19-4", 2),
        {"role": "tool", "tool_call_id": "call_2", "content": "15. Multiply by 3."},
        tool_call("15*3", 3),
        {"role": "tool", "tool_call_id": "call_3", "content": "45. Add 20."},
        tool_call("45+20", 4),
        {"role": "tool", "tool_call_id": "call_4", "content": "65."},
    ]


def solve(client: OpenAI, model: str, start: int, steps: list[str], temperature: float) -> str:
    """Follow the instructions; what the calculator said last."""
    messages: list[Any] = [
        *opening(),
        {"role": "user", "content": f"You have {start}. {steps[0]}."},
    ]
    result = ""
    for following in [*steps[1:], None]:
        completion = client.chat.completions.create(
            model=model,
            messages=messages,
            tools=[CALCULATOR],  # pyright: ignore[reportArgumentType]
            temperature=temperature,
            max_tokens=MAX_TOKENS,
        )
        message = completion.choices[0].message
        calls = [call for call in message.tool_calls or () if call.type == "function"]
        if len(calls) != 1:
            return "no call"
        try:
            result = calculate(str(json.loads(calls[0].function.arguments)["expression"]))
        except (ValueError, KeyError, TypeError):
            result = "error"
        content = f"{result}." if following is None else f"{result}. {following}."
        messages.append(message.model_dump(exclude_none=True))
        messages.append({"role": "tool", "tool_call_id": calls[0].id, "content": content})
    return result


def main() -> None:
    """Solve one task."""
    parser = argparse.ArgumentParser(description="Follow five instructions with a calculator.")
    parser.add_argument("--model", default="policy", help="model name to ask for")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    options = parser.parse_args()
    task = json.loads(os.environ.get("TASK") or sys.stdin.read())
    print(solve(OpenAI(), options.model, task["start"], task["steps"], options.temperature))


if __name__ == "__main__":
    main()
