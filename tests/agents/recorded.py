"""What the log holds of an agent's run, in words that are the same for every API."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from fulgurite.events import LlmCall

Json = Mapping[str, Any]


def roles(call: LlmCall) -> str:
    """Roles of a prompt, in order: system, user, assistant, call (an assistant's turn that calls
    tools), tool.
    """
    body = cast("Json", json.loads(call.request or "{}"))
    told = {"chat.completions": _chat, "responses": _responses, "messages": _messages}[call.api](
        body
    )
    return " ".join(told)


def _chat(body: Json) -> Iterator[str]:
    for message in cast("list[Json]", body["messages"]):
        yield "call" if message.get("tool_calls") else _role(message)


def _responses(body: Json) -> Iterator[str]:
    if body.get("instructions"):
        yield "system"
    asked = body["input"]
    for item in [{"role": "user"}] if isinstance(asked, str) else cast("list[Json]", asked):
        kind = item.get("type", "message")
        yield {"function_call": "call", "function_call_output": "tool"}.get(kind) or _role(item)


def _messages(body: Json) -> Iterator[str]:
    if body.get("system"):
        yield "system"
    for message in cast("list[Json]", body["messages"]):
        content = message["content"]
        kinds = (
            {block["type"] for block in cast("list[Json]", content)}
            if isinstance(content, list)
            else set[str]()
        )
        yield (
            "tool" if "tool_result" in kinds else "call" if "tool_use" in kinds else _role(message)
        )


def _role(message: Json) -> str:
    role = str(message["role"])
    return "system" if role == "developer" else role
