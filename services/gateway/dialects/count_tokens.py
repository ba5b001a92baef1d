"""Anthropic's token counting: `POST /v1/messages/count_tokens`."""

from __future__ import annotations

import msgspec

from services.gateway.dialects.anthropic_errors import AnthropicErrors
from services.gateway.dialects.dialect import ApiRequest
from services.gateway.dialects.messages import parse_messages
from services.gateway.dialects.plain import PlainCapture, PlainDialect
from services.gateway.upstream.route import Route


class CountTokens(AnthropicErrors, PlainDialect):
    """See Dialect."""

    api = "messages.count_tokens"
    path = "/v1/messages/count_tokens"

    def parse(self, raw: bytes) -> ApiRequest:
        """Parse a request. Raises InvalidRequest unless it is a JSON object with a `model` and a
        list of `messages`.
        """
        return msgspec.structs.replace(parse_messages(raw), stream=False)

    def capture(self, request: ApiRequest, route: Route, call_id: str) -> PlainCapture:
        """See Dialect."""
        return PlainCapture(call_id, None, known_by="input_tokens")
