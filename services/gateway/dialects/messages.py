"""Anthropic's messages: `POST /v1/messages`. The key comes as `x-api-key` or as a bearer token."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from fulgurite.events import Sampling
from fulgurite.ids import public_completion
from services.gateway.capture import encode
from services.gateway.dialect import ApiRequest, mapping, parse_envelope, text
from services.gateway.dialects.anthropic_errors import NO_THREADS, AnthropicErrors
from services.gateway.dialects.chat import session_of
from services.gateway.dialects.messages_capture import MessagesCapture
from services.gateway.dialects.packed import asking
from services.gateway.dialects.sampling import sampling_of
from services.gateway.problems import InvalidRequest
from services.gateway.settings import Route

_FORCED = ("any", "tool")


class Messages(AnthropicErrors):
    """See Dialect."""

    api = "messages"
    path = "/v1/messages"

    def parse(self, raw: bytes) -> ApiRequest:
        """Raises InvalidRequest for what is no JSON object with a `model`, a list of `messages` and a boolean `stream`."""
        return parse_messages(raw)

    def sampling(self, request: ApiRequest, defaults: Sampling) -> Sampling:
        """A forced tool and an output format bind the answer to a grammar."""
        body = request.body
        forced = mapping(body, "tool_choice").get("type") in _FORCED
        formatted = bool(mapping(body, "output_config").get("format") or body.get("output_format"))
        sampling = sampling_of({name: value for name, value in body.items() if name != "tool_choice"}, defaults, "max_tokens")
        return msgspec.structs.replace(sampling, grammar=sampling.grammar or forced or formatted)

    def upstream_body(self, request: ApiRequest, route: Route, call_id: str) -> bytes:
        """See Dialect."""
        return encode({**request.body, "model": route.model})

    def upstream_headers(self, request: ApiRequest, route: Route) -> dict[str, str]:
        """See Dialect."""
        return {"anthropic-version": "2023-06-01", **(asking() if route.kind == "vllm" else {})}

    def capture(self, request: ApiRequest, route: Route, call_id: str) -> MessagesCapture:
        """See Dialect."""
        return MessagesCapture(public_completion(call_id, "msg_"), route.alias if route.kind == "vllm" else None)


def parse_messages(raw: bytes) -> ApiRequest:
    """A request with a conversation in Anthropic's form. Raises InvalidRequest."""
    body, alias, stream = parse_envelope(raw, "`model`, `messages` and `max_tokens`")
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise InvalidRequest("`messages` must be a list of messages.", param="messages")
    if body.get("thread") is not None:
        # Model servers that know no threads ignore the field and answer without the conversation; clients that are told send it whole.
        raise InvalidRequest("`thread` is not supported: send the whole conversation with each call.", param="thread", code=NO_THREADS)
    user = text(mapping(body, "metadata"), "user_id")
    return ApiRequest(body, alias, stream, session_of(body), items=cast("list[Any]", messages), user=user)
