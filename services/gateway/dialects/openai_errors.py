"""Errors in OpenAI's shape: the default face of `problems`."""

from __future__ import annotations

from services.gateway.errors import GatewayError
from services.gateway.http.event_stream import COMMENT


class OpenAIErrors:
    """A base of OpenAI's dialects."""

    keep_alive = COMMENT

    def error_body(self, problem: GatewayError) -> bytes:
        """See Dialect."""
        return problem.body()

    def error_event(self, problem: GatewayError) -> bytes:
        """See Dialect."""
        return b"data: " + problem.body() + b"\n\n"
