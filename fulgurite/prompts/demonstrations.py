"""Writes demonstrations as each API has its messages."""

from __future__ import annotations

from collections.abc import Iterable

from fulgurite.events import Demonstration
from fulgurite.untrusted_json import Json, mapping, parsed


def chat_messages(demonstrations: Iterable[Demonstration]) -> list[Json]:
    """As messages of a chat."""
    return [_chat_message(one) for one in demonstrations]


def block_messages(demonstrations: Iterable[Demonstration]) -> list[Json]:
    """As Anthropic's messages."""
    return [_block_message(one) for one in demonstrations]


def response_items(demonstrations: Iterable[Demonstration]) -> list[Json]:
    """As items of OpenAI's responses."""
    return [item for one in demonstrations for item in _response_items(one)]


def _chat_message(one: Demonstration) -> Json:
    message: Json = {"role": one.role, "content": one.content}
    if one.tool_call_id is not None:
        message["tool_call_id"] = one.tool_call_id
    if one.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in one.tool_calls
        ]
    return message


def _block_message(one: Demonstration) -> Json:
    if one.tool_call_id is not None:
        result = {
            "type": "tool_result",
            "tool_use_id": one.tool_call_id,
            "content": one.content,
        }
        return {"role": "user", "content": [result]}
    if not one.tool_calls:
        return {"role": one.role, "content": one.content}
    text = [{"type": "text", "text": one.content}] if one.content else []
    uses = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _object(call.arguments)}
        for call in one.tool_calls
    ]
    return {"role": one.role, "content": [*text, *uses]}


def _response_items(one: Demonstration) -> list[Json]:
    if one.tool_call_id is not None:
        return [
            {
                "type": "function_call_output",
                "call_id": one.tool_call_id,
                "output": one.content,
            }
        ]
    text = [{"role": one.role, "content": one.content}] if one.content or not one.tool_calls else []
    return text + [
        {
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }
        for call in one.tool_calls
    ]


def _object(text: str) -> Json:
    try:
        return mapping(parsed(text))
    except ValueError:
        return {}
