"""An agent that answers word problems with a calculator: plain OpenAI SDK, nothing else.

It finds its model through OPENAI_BASE_URL and OPENAI_API_KEY and its task, a JSON object with a
`question`, in the variable TASK or on standard input. It prints the model's last words. It knows
nothing of who serves, records or trains the model.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
from typing import Any

from openai import OpenAI

MAX_TOKENS = 20  # the longest good turn, `calc(98-12)` or `answer: 1110`, takes twelve
MAX_DIGITS = 12

CALCULATOR: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calc",
        "description": "Works out an arithmetic expression.",
        "parameters": {
            "type": "object",
            "properties": {
                "expression": {
                    "type": "string",
                    "description": "Numbers with + - * / and brackets.",
                }
            },
            "required": ["expression"],
        },
    },
}


class Uncomputable(ValueError):
    """The calculator cannot work out what it was given."""


def calculate(expression: str) -> str:
    """The value of an arithmetic expression, whole where it is whole. Raises Uncomputable."""
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (
        SyntaxError,
        ZeroDivisionError,
        OverflowError,
        RecursionError,
        MemoryError,
        ValueError,
    ) as error:
        raise Uncomputable(f"cannot work out {expression[:40]!r}: {error}") from error
    return str(int(value)) if value == int(value) else f"{value:.4f}".rstrip("0")


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if (
            not isinstance(number, bool) and abs(number) < 10**MAX_DIGITS
        ):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(left) - _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left) * _value(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _value(left) / _value(right)
        case _:
            raise Uncomputable(f"only numbers below 10^{MAX_DIGITS} with + - * / and brackets")


def example(question: str, expression: str, number: int) -> list[dict[str, Any]]:
    """A worked example as earlier turns of the conversation."""
    call_id = f"call_{number}"
    call = {
        "id": call_id,
        "type": "function",
        "function": {"name": "calc", "arguments": json.dumps({"expression": expression})},
    }
    result = calculate(expression)
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": result},
        {"role": "assistant", "content": f"answer: {result}"},
    ]


def opening(question: str) -> list[dict[str, Any]]:
    """The conversation up to the model's first turn."""
    return [
        {"role": "system", "content": "Use the calculator, then give the answer."},
        *example("Sam has 3 pens and buys 8 more. How many pens does Sam have?", "3+8", 1),
        *example("A shop had 50 cups and sold 20 of them. How many cups are left?", "50-20", 2),
        {"role": "user", "content": question},
    ]


def use_tool(name: str, arguments: str) -> str:
    """What the tool says: a result, or an error the model can read."""
    if name != "calc":
        return f"error: there is no tool {name}"
    try:
        return calculate(str(json.loads(arguments)["expression"]))
    except (ValueError, KeyError, TypeError) as error:
        return f"error: {error}"


def solve(client: OpenAI, models: tuple[str, str], question: str, temperature: float) -> str:
    """Let the first model call the calculator and the second one answer; the text of the last
    turn.
    """
    messages: list[Any] = opening(question)
    text = ""
    for model in models:
        completion = client.chat.completions.create(
            model=model,
            messages=messages,
            tools=[CALCULATOR],  # pyright: ignore[reportArgumentType]
            temperature=temperature,
            max_tokens=MAX_TOKENS,
        )
        message = completion.choices[0].message
        text = message.content or ""
        if not message.tool_calls:
            break
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            if call.type == "function":
                result = use_tool(call.function.name, call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return text


def main() -> None:
    """Solve one task."""
    parser = argparse.ArgumentParser(description="Answer a word problem with a calculator.")
    parser.add_argument("--model", default="policy", help="model name to ask for")
    parser.add_argument("--answerer", help="another model name, for the turn after the tool's")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    options = parser.parse_args()
    task = json.loads(os.environ.get("TASK") or sys.stdin.read())
    models = options.model, options.answerer or options.model
    print(solve(OpenAI(), models, task["question"], options.temperature))


if __name__ == "__main__":
    main()
