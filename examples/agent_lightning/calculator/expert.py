"""Knows the expression: the warm start's agent says what this says."""

from __future__ import annotations

from typing import Any


def answer(task: dict[str, Any], messages: list[dict[str, Any]]) -> str | dict[str, Any]:
    """A call of the calculator, then the answer."""
    reference = task["reference"]
    if messages[-1]["role"] != "tool":
        arguments = {"expression": reference["expression"]}
        return {"tool_calls": [{"name": "calculate", "arguments": arguments}]}
    return f"### ANSWER: {reference['answer']} ###"
