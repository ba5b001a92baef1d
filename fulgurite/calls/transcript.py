"""Shows a call as chat messages with `role`, `content` and `tool_calls`, whatever its API was.

A chat's own messages stay as they are. Anthropic's content blocks and the items of OpenAI's
responses become messages: texts are joined, tool calls collected, a tool's result is a message with
role `tool`, reasoning is left out. Never raises for what an agent or a model wrote.
"""

from __future__ import annotations

import json
from typing import Any, cast

from fulgurite.calls.claim_checks import described
from fulgurite.events import Choice, LlmCall
from fulgurite.untrusted_json import Json, called_functions, mapping, mappings, parsed

_TEXTS = ("text", "input_text", "output_text")
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")
_SYSTEM = ("system", "developer")

LONGEST_SEARCHED = 20_000
"""Characters of a text that patterns of settings are searched in: one may take time with the square
of them.
"""


def messages_of(call: LlmCall) -> list[Json]:
    """The messages of a call's request; none if the body cannot be read."""
    return messages_in(body_of(call), call.api)


def body_of(call: LlmCall) -> Json:
    """The request body of a call; empty if it cannot be read."""
    return _object(call.request)


def messages_in(body: Json, api: str) -> list[Json]:
    """The messages of a request body of this API."""
    if api == "completions":
        prompt = body.get("prompt")
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else []
    if api == "responses":
        return _system(body.get("instructions")) + _of_items(body.get("input"))
    messages = mappings(body.get("messages"))
    if api == "messages":
        return _system(body.get("system")) + [
            part for message in messages for part in _of_blocks(message)
        ]
    return messages


def is_system(message: Json) -> bool:
    """Whether it instructs the model, rather than being said in the conversation."""
    return message.get("role") in _SYSTEM


def system_prompt(messages: list[Json]) -> str:
    """The texts of all system messages, joined by line ends."""
    return "\n".join(text_of(message) for message in messages if is_system(message))


def text_of(message: Json) -> str:
    """The text of a message, whose content may be a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in mappings(content))


def answer_of(choice: Choice) -> Json | None:
    """The answer as one message; None if it cannot be read."""
    message = _object(choice.message)
    if "output" in message:
        said = _of_items(message["output"])
        return said[0] if said else {"role": "assistant", "content": ""}
    if "text" in message:
        return {"role": "assistant", "content": message["text"]}
    if isinstance(message.get("content"), list):
        return _of_blocks(message)[0]
    return message or None


def shown(message: Json | None) -> str:
    """Show a message as one text: its content and its tool calls. Payloads elsewhere are named by
    their size.
    """
    if message is None:
        return "[cannot be read]"
    content = message.get("content")
    if isinstance(content, list):
        texts = [_text_of_part(part) for part in cast("list[object]", content)]
    else:
        texts = [_text_of_part(content)] if content else []
    calls = [
        f"{function.get('name')}({function.get('arguments')})"
        for function in called_functions(message)
    ]
    return described(" ".join(part for part in (*texts, *calls) if part))


def _text_of_part(part: object) -> str:
    """A part of a message's content: its text, or what it is made of."""
    if isinstance(part, str):
        return part
    text = mapping(part).get("text")
    return text if isinstance(text, str) else json.dumps(part, ensure_ascii=False)


def _of_blocks(message: Json) -> list[Json]:
    """Convert a message of Anthropic's API: tool results first, then the rest."""
    content, role = message.get("content"), message.get("role", "user")
    if not isinstance(content, list):
        return [message]
    blocks = [block for block in mappings(content) if block.get("type") not in _THOUGHTS]
    results = [
        {
            **_result(block.get("tool_use_id"), block.get("content")),
            **({"is_error": True} if block.get("is_error") is True else {}),
        }
        for block in blocks
        if block.get("type") == "tool_result"
    ]
    calls = [
        _call(block.get("id"), block.get("name"), block.get("input"))
        for block in blocks
        if block.get("type") == "tool_use"
    ]
    rest = [block for block in blocks if block.get("type") not in ("tool_result", "tool_use")]
    if results and not rest and not calls:
        return results
    return [
        *results,
        {"role": role, "content": _joined(rest), **({"tool_calls": calls} if calls else {})},
    ]


def _of_items(given: Any) -> list[Json]:
    """Convert items of responses; adjacent items of the assistant become one message."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Json] = []
    for item in mappings(given):
        message = _of_item(item)
        if message is None:
            continue
        if messages and message["role"] == messages[-1]["role"] == "assistant":
            _add(messages[-1], message)
        else:
            messages.append(message)
    return messages


def _of_item(item: Json) -> Json | None:
    kind = item.get("type")
    if isinstance(item.get("role"), str):
        content = item.get("content")
        return {
            "role": item["role"],
            "content": _joined(mappings(content)) if isinstance(content, list) else content,
        }
    if kind in ("function_call", "custom_tool_call"):
        call = _call(
            item.get("call_id"), item.get("name"), item.get("arguments", item.get("input"))
        )
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind in ("function_call_output", "custom_tool_call_output"):
        return _result(item.get("call_id"), item.get("output"))
    return None


def _add(message: Json, more: Json) -> None:
    said = [part for part in (message["content"], more["content"]) if part]
    message["content"] = said[0] if len(said) == 1 else "".join(map(str, said))
    calls = message.get("tool_calls", []) + more.get("tool_calls", [])
    if calls:
        message["tool_calls"] = calls


def _joined(parts: list[Json]) -> Any:
    """The joined text of parts if all are text, else the parts."""
    if all(part.get("type") in _TEXTS for part in parts):
        return "".join(str(part.get("text", "")) for part in parts)
    return parts


def _call(name_of_it: Any, name: Any, arguments: Any) -> Json:
    text = (
        arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    )
    return {"id": name_of_it, "type": "function", "function": {"name": name, "arguments": text}}


def _result(name_of_it: Any, content: Any) -> Json:
    text = _joined(mappings(content)) if isinstance(content, list) else content
    return {"role": "tool", "tool_call_id": name_of_it, "content": text}


def _system(given: Any) -> list[Json]:
    text = _joined(mappings(given)) if isinstance(given, list) else given
    return [{"role": "system", "content": text}] if text else []


def _object(text: str | None) -> Json:
    try:
        return mapping(parsed(text or "{}"))
    except ValueError:
        return {}
