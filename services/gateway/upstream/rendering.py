"""Has a vLLM render a chat to the tokens of its prompt, with the fields that shape it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from services.gateway.recording.call import Call
from services.gateway.upstream.client import UpstreamClient
from services.gateway.upstream.route import Route

SHAPES = ("tools", "chat_template", "chat_template_kwargs", "add_special_tokens")
"""Fields that shape a prompt, and that `/tokenize` knows."""


class _Rendered(msgspec.Struct):
    tokens: list[int]


async def render(
    client: UpstreamClient,
    call: Call,
    route: Route,
    messages: Sequence[Any],
    *,
    for_answer: bool,
) -> list[int]:
    """The tokens of these messages in the place of the call's; `for_answer`: with the beginning of
    the model's turn after them. Raises UpstreamFailed, and `foreign_json.UNREADABLE` errors.
    """
    shapes = {
        name: call.request.body[name] for name in SHAPES if call.request.body.get(name) is not None
    }
    body = msgspec.json.encode(
        {
            **shapes,
            "messages": messages,
            "model": route.model,
            "add_generation_prompt": for_answer,
        }
    )
    async with client.open(route, "/tokenize", body, call.call_id, None, {}) as reply:
        return msgspec.json.decode(await reply.read(), type=_Rendered).tokens
