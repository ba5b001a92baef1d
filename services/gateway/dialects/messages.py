"""Anthropic's messages: `POST /v1/messages`. The key comes as `x-api-key` or as a bearer token."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from fulgurite.events import Sampling
from fulgurite.ids import public_completion
from services.gateway.dialects.anthropic_errors import NO_THREADS, AnthropicErrors
from services.gateway.dialects.capture import Json, encode
from services.gateway.dialects.chat import session_of
from services.gateway.dialects.dialect import (
    ApiRequest,
    Unkept,
    mapping,
    parse_envelope,
    refuse_unkept,
    text,
)
from services.gateway.dialects.messages_capture import MessagesCapture
from services.gateway.dialects.numbers import coerce_numbers
from services.gateway.dialects.packed import asking
from services.gateway.dialects.sampling import sampling_of
from services.gateway.errors import InvalidRequest
from services.gateway.upstream.route import Route

_FORCED = ("any", "tool")
# Model servers ignore these fields, and answer without what they ask for.
_UNKEPT = (
    # Clients that get this code send the complete conversation.
    Unkept("thread", "send the complete conversation with each call.", NO_THREADS),
    Unkept(
        "container",
        "no container is kept between calls. Leave it out, and run code in the agent's own tools.",
    ),
    Unkept(
        "mcp_servers",
        "no tool is called here. Leave it out, and offer the servers' tools in `tools`.",
    ),
)
_EDITS = Unkept(
    "context_management",
    'nothing is taken out of a conversation here. Leave it out (`{"type": '
    '"clear_thinking_20251015", "keep": "all"}` may stay), '
    "and send the messages that the model should see.",
)


class Messages(AnthropicErrors):
    """See Dialect."""

    api = "messages"
    path = "/v1/messages"

    def parse(self, raw: bytes) -> ApiRequest:
        """Parse a request. Raises InvalidRequest unless it is a JSON object with a `model`, a list
        of `messages` and a boolean `stream`.
        """
        return parse_messages(raw)

    def sampling(self, request: ApiRequest, defaults: Sampling) -> Sampling:
        """A forced tool and an output format bind the answer to a grammar."""
        body = request.body
        forced = mapping(body, "tool_choice").get("type") in _FORCED
        formatted = bool(mapping(body, "output_config").get("format") or body.get("output_format"))
        sampling = sampling_of(
            {name: value for name, value in body.items() if name != "tool_choice"},
            defaults,
            "max_tokens",
        )
        return msgspec.structs.replace(sampling, grammar=sampling.grammar or forced or formatted)

    def upstream_body(self, request: ApiRequest, route: Route, call_id: str) -> bytes:
        """See Dialect."""
        return encode({**request.body, "model": route.model})

    def upstream_headers(self, request: ApiRequest, route: Route) -> dict[str, str]:
        """See Dialect."""
        return {"anthropic-version": "2023-06-01", **(asking() if route.kind == "vllm" else {})}

    def capture(self, request: ApiRequest, route: Route, call_id: str) -> MessagesCapture:
        """See Dialect."""
        return MessagesCapture(
            public_completion(call_id, "msg_"), route.alias if route.kind == "vllm" else None
        )


def parse_messages(raw: bytes) -> ApiRequest:
    """A request with a conversation in Anthropic's form. Raises InvalidRequest."""
    body, alias, stream = parse_envelope(raw, "`model`, `messages` and `max_tokens`")
    coerce_numbers(body)
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise InvalidRequest("`messages` must be a list of messages.", param="messages")
    refuse_unkept(body, _UNKEPT)
    if not _edits_nothing(body):
        refuse_unkept(body, (_EDITS,))
    user = text(mapping(body, "metadata"), "user_id")
    return ApiRequest(
        body, alias, stream, session_of(body), items=cast("list[Any]", messages), user=user
    )


def _edits_nothing(body: Json) -> bool:
    """Whether `context_management` leaves the conversation as it is: Claude Code sends such a value
    with every call.
    """
    edits = mapping(body, "context_management").get("edits")
    return isinstance(edits, list) and all(_keeps_all(edit) for edit in cast("list[Any]", edits))


def _keeps_all(edit: Any) -> bool:
    fields = cast(Json, edit) if isinstance(edit, dict) else {}
    return str(fields.get("type")).startswith("clear_thinking_") and fields.get("keep") == "all"
