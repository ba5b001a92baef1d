"""An agent that may run Python to answer a question: plain OpenAI SDK, a sandbox, nothing else.

The sandbox (Monty, a Python interpreter in a process of its own) has no network, no files and
little time. The task is a JSON object with a `question`, in the variable TASK or on standard input.
The model's last words are printed.
"""

# Monty is not installed where the types are checked.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from openai import OpenAI
from pydantic_monty import CollectString, Monty, MontyError, MontySession, ResourceLimits

MAX_TOKENS = 48
MAX_CALLS = 3
LONGEST_RESULT = 200
LIMITS = ResourceLimits(max_feed_duration_secs=1.0, max_memory=64 * 2**20)

PYTHON: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Runs Python and gives what it prints, or the value of its last line.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The program."}},
            "required": ["code"],
        },
    },
}


def run_python(session: MontySession, code: str) -> str:
    """What a program prints, or the value of its last line, or its error."""
    printed = CollectString()
    try:
        value = session.feed_run(code, print_callback=printed)
    except MontyError as error:
        return f"error: {error}"[:LONGEST_RESULT]
    return (printed.output.strip() or str(value))[:LONGEST_RESULT]


def use_tool(session: MontySession, name: str, arguments: str) -> str:
    """What the tool says: a result, or an error the model can read."""
    if name != "python":
        return f"error: there is no tool {name}"
    try:
        code = str(json.loads(arguments)["code"])
    except (ValueError, KeyError, TypeError) as error:
        return f"error: {error}"
    return run_python(session, code)


def solve(client: OpenAI, session: MontySession, question: str, temperature: float) -> str:
    """Let the model run programs until it answers; the text of its last turn."""
    messages: list[Any] = [
        {"role": "system", "content": "Answer the question. Run Python where that helps."},
        {"role": "user", "content": question},
    ]
    text = ""
    for _ in range(MAX_CALLS + 1):
        completion = client.chat.completions.create(
            model="policy",
            messages=messages,
            tools=[PYTHON],  # pyright: ignore[reportArgumentType]
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
                result = use_tool(session, call.function.name, call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return text


def main() -> None:
    """Answer one question."""
    parser = argparse.ArgumentParser(description="Answer a question, with Python where it helps.")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    options = parser.parse_args()
    task = json.loads(os.environ.get("TASK") or sys.stdin.read())
    with Monty(max_processes=1) as pool, pool.checkout(limits=LIMITS) as session:
        print(solve(OpenAI(), session, task["question"], options.temperature))


if __name__ == "__main__":
    main()
