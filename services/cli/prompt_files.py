"""Reads the files of a prompt version: texts, demonstrations, descriptions of tools."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fulgurite.events import Demonstration, DemonstrationCall
from fulgurite.untrusted_json import Json, called_functions, mapping, mappings, parsed

MAX_CHARACTERS = 1_000_000
"""Largest version in characters, all its texts together: a record holds at most 8 MiB."""
_SECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_ROLES = ("user", "assistant", "tool")


class BadPrompt(ValueError):
    """A file, an option or a version that no prompt can be made of."""


def read_text(path: Path) -> str:
    """A text without line ends at its end. Raises BadPrompt for one that is empty or not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise BadPrompt(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadPrompt(f"{path} is not UTF-8: {error}") from error
    if not text.strip():
        raise BadPrompt(f"{path} is empty: write the text into it, or leave the option out")
    return text


def read_named(option: str, given: Sequence[str]) -> dict[str, str]:
    """Texts by name, from arguments such as `rules=rules.txt`. Raises BadPrompt."""
    found: dict[str, str] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not (name and equals and path):
            raise BadPrompt(f"{option} {one!r}: write NAME=FILE")
        if name in found:
            raise BadPrompt(f"{option}: {name!r} is given twice")
        found[name] = read_text(Path(path))
    return found


def read_sections(given: Sequence[str]) -> dict[str, str]:
    """Fillings by section. Raises BadPrompt, also for a filling that would end its section."""
    found = read_named("--section", given)
    for name, text in found.items():
        if not _SECTION.fullmatch(name):
            raise BadPrompt(
                f"--section {name!r}: a name has letters, digits, `_`, `.` and `-`, and stands for "
                "the text between <NAME> and </NAME>"
            )
        if f"</{name}>" in text:
            raise BadPrompt(
                f"--section {name}: its file contains </{name}>, which would end the section: "
                "write only what stands between the tags"
            )
    return found


def read_demonstrations(path: Path) -> tuple[Demonstration, ...]:
    """Messages, one JSON object a line, as a chat has them. Raises BadPrompt."""
    lines = enumerate(read_text(path).split("\n"), 1)
    found = tuple(
        _demonstration(line, f"{path}:{number}") for number, line in lines if line.strip()
    )
    called: set[str] = set()
    for number, one in enumerate(found, 1):
        if one.tool_call_id is not None and one.tool_call_id not in called:
            raise BadPrompt(
                f"{path}: message {number} is the result of {one.tool_call_id!r}, which no earlier "
                "message calls"
            )
        called |= {call.id for call in one.tool_calls}
    if found[0].role != "user" or found[-1].role != "assistant" or found[-1].tool_calls:
        raise BadPrompt(
            f"{path}: demonstrations begin with a message of the user and end with an answer of "
            "the assistant that calls no tool"
        )
    return found


def _demonstration(line: str, place: str) -> Demonstration:
    try:
        message = parsed(line)
    except ValueError as error:
        raise BadPrompt(f"{place} is not JSON ({error}): write one message a line") from error
    if not isinstance(message, dict):
        raise BadPrompt(f"{place} is not a JSON object: write one message a line")
    fields = mapping(message)
    role, content = fields.get("role"), fields.get("content") or ""
    unknown = sorted(set(fields) - {"role", "content", "tool_calls", "tool_call_id"})
    if role not in _ROLES:
        raise BadPrompt(f"{place}: the role {role!r} is none of {', '.join(_ROLES)}")
    if unknown:
        raise BadPrompt(
            f"{place} has {', '.join(unknown)}: a demonstration has role, content, tool_calls and "
            "tool_call_id"
        )
    if not isinstance(content, str):
        raise BadPrompt(f"{place}: `content` must be a text")
    calls, result_of = _tool_calls(fields, place), fields.get("tool_call_id")
    if (role == "tool") != isinstance(result_of, str):
        raise BadPrompt(f"{place}: messages of role tool, and no others, name a `tool_call_id`")
    if calls and role != "assistant":
        raise BadPrompt(f"{place}: only the assistant has `tool_calls`")
    if not content and not calls and role != "tool":
        raise BadPrompt(f"{place} says nothing: it has neither content nor tool_calls")
    return Demonstration(role=role, content=content, tool_calls=calls, tool_call_id=result_of)


def _tool_calls(fields: Json, place: str) -> tuple[DemonstrationCall, ...]:
    given = fields.get("tool_calls")
    if not given:
        return ()
    calls = mappings(given)
    if calls != given:
        raise BadPrompt(f"{place}: `tool_calls` must be a list of objects")
    return tuple(
        _tool_call(call.get("id"), function, place)
        for call, function in zip(calls, called_functions(fields), strict=True)
    )


def _tool_call(call_id: Any, function: Json, place: str) -> DemonstrationCall:
    name, arguments = function.get("name"), function.get("arguments")
    if not (isinstance(call_id, str) and call_id and isinstance(name, str) and name):
        raise BadPrompt(f"{place}: a tool call has an `id`, and a `function` with a `name`")
    try:
        is_object = isinstance(parsed(arguments), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise BadPrompt(f"{place}: the `arguments` of {name} must be a text with a JSON object")
    return DemonstrationCall(id=call_id, name=name, arguments=str(arguments))
