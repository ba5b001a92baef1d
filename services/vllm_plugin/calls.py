"""The tiny format in which small models write tool calls: `calc(3+8)`, a call a line, at the end of
the reply. Pure text in and out.

A tool whose only parameter is a string takes its raw text, every other tool a JSON object.
`content` of a parsed reply is None when the calls alone render to exactly the text that was
generated; else it is that whole text, which the chat template then renders instead of the calls.
Either way the next turn's prompt repeats what the model wrote, letter by letter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast


class Call(NamedTuple):
    """A call; `arguments` is JSON, as OpenAI's API has it."""

    name: str
    arguments: str


class Reply(NamedTuple):
    """What a generated text says."""

    content: str | None
    calls: tuple[Call, ...]


Tools = Mapping[str, Mapping[str, Any]]
"""Tool name → JSON schema of its parameters."""


def raw_parameter(schema: Mapping[str, Any]) -> str | None:
    """The name of the only parameter if that is a string, else None."""
    properties = cast("Mapping[str, Mapping[str, Any]]", schema.get("properties") or {})
    if len(properties) != 1:
        return None
    ((name, described),) = properties.items()
    return name if described.get("type") == "string" else None


def parse(text: str, tools: Tools) -> Reply:
    """Calls are recognised at the end of the text only, each on a line of its own; what follows a
    call makes it prose.
    """
    lines = text.strip().split("\n")
    calls: list[Call] = []
    for line in reversed(lines):
        call = _call(line.strip(), tools)
        if call is None:
            break
        calls.insert(0, call)
    if not calls and (whole := _call(text.strip(), tools)) is not None:
        calls = [whole]
    if not calls:
        return Reply(text, ())
    return Reply(None if render(calls, tools) == text else text, tuple(calls))


def render(calls: Sequence[Call], tools: Tools) -> str:
    """As the chat template does it."""
    return "\n".join(f"{call.name}({_written(call, tools)})" for call in calls)


def may_be_calls_alone(text: str, tools: Tools) -> bool:
    """Whether a reply that begins so can still turn out to be nothing but calls, written as the
    template would.
    """
    return any(text.startswith(f"{name}(") or f"{name}(".startswith(text) for name in tools)


def _call(text: str, tools: Tools) -> Call | None:
    name, bracket, rest = text.partition("(")
    if name not in tools or not bracket or not rest.endswith(")"):
        return None
    inner = rest[:-1]
    parameter = raw_parameter(tools[name])
    if parameter is not None:
        return Call(name, _json({parameter: inner}))
    try:
        parsed: object = json.loads(inner) if inner.strip() else {}
    except ValueError:
        return None
    return Call(name, _json(cast("dict[str, Any]", parsed))) if isinstance(parsed, dict) else None


def _written(call: Call, tools: Tools) -> str:
    arguments = cast("dict[str, Any]", json.loads(call.arguments))
    parameter = raw_parameter(tools[call.name])
    if parameter is not None:
        return str(arguments[parameter])
    return _json(arguments) if arguments else ""


def _json(value: Mapping[str, Any]) -> str:
    """As Jinja's `tojson` in Hugging Face's templates writes it."""
    return json.dumps(value, ensure_ascii=False)
