"""Errors in OpenAI's shape: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import msgspec

from services.gateway.errors import GatewayError

COMMENT = b": keep-alive\n\n"
"""Comment that keeps a silent stream alive; every client skips it."""


def openai_error(error: GatewayError) -> dict[str, str | None]:
    """The error object of OpenAI's APIs."""
    return {
        "message": error.message,
        "type": error.kind,
        "param": error.param,
        "code": error.code,
    }


def openai_error_body(error: GatewayError) -> bytes:
    """The reply in OpenAI's shape."""
    return msgspec.json.encode({"error": openai_error(error)})


class OpenAIErrors:
    """Base of OpenAI's dialects."""

    keep_alive = COMMENT

    def error_body(self, problem: GatewayError) -> bytes:
        """See Dialect."""
        return openai_error_body(problem)

    def error_event(self, problem: GatewayError) -> bytes:
        """See Dialect."""
        return b"data: " + openai_error_body(problem) + b"\n\n"
