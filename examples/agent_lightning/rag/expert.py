"""Knows which searches lead to the answer: the warm start's agent says what this says."""

from __future__ import annotations

from typing import Any


def answer(task: dict[str, Any], messages: list[dict[str, Any]]) -> str | dict[str, Any]:
    """The next search, or the answer after the last one."""
    reference = task["reference"]
    done = sum(message["role"] == "tool" for message in messages)
    if done < len(reference["queries"]):
        arguments = {"query": reference["queries"][done]}
        return {"tool_calls": [{"name": "retrieve", "arguments": arguments}]}
    return f"<answer>{reference['answer']}</answer>"
