"""Knows the query: the warm start's agents say what this says."""

from __future__ import annotations

from typing import Any


def answer(task: dict[str, Any], messages: list[dict[str, Any]]) -> str:
    """The query in a fence; of any query, that it is right."""
    if "Double check the" in messages[0]["content"]:
        return "THE QUERY IS CORRECT."
    return f"```sqlite\n{task['reference']['query']}\n```"
