"""Applies a version of a prompt to a request: what is served is a pure function of what was sent.

The system prompt is edited, demonstrations are inserted after it, and tools that the request offers
get their descriptions. Nothing else changes, and the request itself is not changed in place. A
version is applied wholly or not at all. It does not fit a request without messages (completions,
embeddings), or whose system prompt lacks a section that it fills: that is served as it was sent.

The log has what was sent and the version's name, and what was served is computed from them. So the
same version must edit the same request alike in every release.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from fulgurite.calls.transcript import body_of, is_system
from fulgurite.events import LlmCall, PromptUpdate
from fulgurite.prompts.demonstrations import block_messages, chat_messages, response_items
from fulgurite.prompts.history import PromptHistory
from fulgurite.prompts.system_prompt import edit_system
from fulgurite.untrusted_json import Json, encoded, mapping


def served_body(body: Json, api: str, prompt: PromptUpdate) -> Json | None:
    """The body of a request of this API as it is served; None if the version does not fit it."""
    edit = _EDITORS.get(api)
    edited = edit(body, prompt) if edit is not None else None
    return None if edited is None else _with_tools(edited, prompt.tools)


def served_call(call: LlmCall, history: PromptHistory) -> LlmCall:
    """The complete call with the request as it was served instead of as it was sent.

    The same call where both are equal, or the log has no such version.
    """
    prompt = history.find(call.alias, call.prompt_version)
    body = None if prompt is None else served_body(body_of(call), call.api, prompt)
    return call if body is None else msgspec.structs.replace(call, request=encoded(body).decode())


def _edit_chat(body: Json, prompt: PromptUpdate) -> Json | None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return None
    leading, rest = _split(cast("list[Any]", messages))
    leading = edit_system(leading, prompt)
    if leading is None:
        return None
    return {**body, "messages": [*leading, *chat_messages(prompt.demonstrations), *rest]}


def _edit_messages(body: Json, prompt: PromptUpdate) -> Json | None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return None
    edited = _edit_field(body, "system", prompt)
    if edited is None:
        return None
    said = [*block_messages(prompt.demonstrations), *cast("list[Any]", messages)]
    return {**edited, "messages": said}


def _edit_responses(body: Json, prompt: PromptUpdate) -> Json | None:
    found = body.get("input")
    if not isinstance(found, str | list) or not found:
        return None
    given = cast("str | list[Any]", found)
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    leading, rest = _split(items)
    if leading and not body.get("instructions"):
        edited, leading = body, edit_system(leading, prompt, "input_text")
    else:
        edited = _edit_field(body, "instructions", prompt)
    if edited is None or leading is None:
        return None
    if isinstance(given, str) and not prompt.demonstrations:
        return edited
    return {**edited, "input": [*leading, *response_items(prompt.demonstrations), *rest]}


def _edit_field(body: Json, name: str, prompt: PromptUpdate) -> Json | None:
    """Edit a system prompt that has a field of its own."""
    content = body.get(name)
    before: list[Json] = [{"content": content}] if content else []
    after = edit_system(before, prompt)
    if after is None:
        return None
    return body if after is before else {**body, name: after[0]["content"]}


def _split(messages: list[Any]) -> tuple[list[Json], list[Any]]:
    """The system messages at the beginning, and the rest."""
    place = next(
        (place for place, one in enumerate(messages) if not is_system(mapping(one))), len(messages)
    )
    return messages[:place], messages[place:]


def _with_tools(body: Json, descriptions: Mapping[str, str]) -> Json:
    tools = body.get("tools")
    if not descriptions or not isinstance(tools, list):
        return body
    return {**body, "tools": [_described(tool, descriptions) for tool in cast("list[Any]", tools)]}


def _described(tool: Any, descriptions: Mapping[str, str]) -> Any:
    """The tool with its description; a chat's tools have theirs in `function`."""
    fields = mapping(tool)
    if isinstance(fields.get("function"), dict):
        return {**fields, "function": _described(fields["function"], descriptions)}
    name = fields.get("name")
    description = descriptions.get(name) if isinstance(name, str) else None
    return tool if description is None else {**fields, "description": description}


_EDITORS = {
    "chat.completions": _edit_chat,
    "responses": _edit_responses,
    "messages": _edit_messages,
    "messages.count_tokens": _edit_messages,
}
