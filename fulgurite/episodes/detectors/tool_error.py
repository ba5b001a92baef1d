"""Detects that the last answer followed tool results that are all marked as errors.

The marks are Anthropic's `is_error`, or a result that is a JSON object with `isError` or `is_error`
true (Model Context Protocol) or a non-empty `error`. Prose about an error does not count.
"""

from __future__ import annotations

from fulgurite.episodes.detectors.evidence import Evidence
from fulgurite.untrusted_json import Json, mapping, parsed


def tool_error(seen: Evidence) -> bool:
    """Whether the tool results before the last answer were all errors."""
    results: list[Json] = []
    for message in reversed(seen.messages):
        if message.get("role") != "tool":
            break
        results.append(message)
    return bool(results) and all(map(_is_error, results))


def _is_error(result: Json) -> bool:
    if result.get("is_error") is True:
        return True
    try:
        fields = mapping(parsed(result.get("content")))
    except ValueError:
        return False
    return (
        fields.get("isError") is True or fields.get("is_error") is True or bool(fields.get("error"))
    )
