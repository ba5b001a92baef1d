"""Edits a system prompt: replaced, filled into named sections, prefixed; in this order.

A system prompt is given as chat messages, whatever API it is from.
"""

from __future__ import annotations

from typing import Any

from fulgurite.events import PromptUpdate
from fulgurite.untrusted_json import Json, mapping


def edit_system(
    messages: list[Json], prompt: PromptUpdate, part: str = "text"
) -> list[Json] | None:
    """The edited messages; the same list where there is nothing to edit.

    None if the version does not fit: a section is not there, or a content is neither text nor
    parts. `part`: the type of a text among parts. Without messages, a text becomes one.
    """
    if not (prompt.system is not None or prompt.prefix is not None or prompt.sections):
        return messages
    if not all(_is_editable(message.get("content")) for message in messages):
        return None
    if prompt.system is not None:
        messages = [{**_first(messages), "content": prompt.system}]
    for name, filling in sorted(prompt.sections.items()):
        filled = _fill_section(messages, name, filling)
        if filled is None:
            return None
        messages = filled
    if prompt.prefix is not None:
        first = _first(messages)
        content = _prefixed(first.get("content"), prompt.prefix, part)
        messages = [{**first, "content": content}, *messages[1:]]
    return messages


def _first(messages: list[Json]) -> Json:
    return messages[0] if messages else {"role": "system"}


def _is_editable(content: Any) -> bool:
    return content is None or isinstance(content, str | list)


def _prefixed(content: Any, prefix: str, part: str) -> Any:
    if isinstance(content, list):
        return [{"type": part, "text": f"{prefix}\n\n"}, *content]
    return f"{prefix}\n\n{content}" if content else prefix


def _fill_section(messages: list[Json], name: str, filling: str) -> list[Json] | None:
    """Fill the first section of this name; None if there is none."""
    for place, message in enumerate(messages):
        content = _fill_content(message.get("content"), name, filling)
        if content is not None:
            return [
                *messages[:place],
                {**message, "content": content},
                *messages[place + 1 :],
            ]
    return None


def _fill_content(content: Any, name: str, filling: str) -> Any:
    if isinstance(content, str):
        return _fill_text(content, name, filling)
    parts: list[Any] = content or []
    for place, part in enumerate(parts):
        text = mapping(part).get("text")
        filled = _fill_text(text, name, filling) if isinstance(text, str) else None
        if filled is not None:
            return [*parts[:place], {**part, "text": filled}, *parts[place + 1 :]]
    return None


def _fill_text(text: str, name: str, filling: str) -> str | None:
    begin, end = f"<{name}>", f"</{name}>"
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    return f"{before}{begin}\n{filling}\n{end}{after}" if opened and closed else None
