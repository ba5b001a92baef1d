"""Errors in Anthropic's shape: `{"type": "error", "error": {"type", "message"}}`."""

from __future__ import annotations

import msgspec

from services.gateway.errors import GatewayError

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
"""Event that keeps a silent stream alive, as in Anthropic's own API."""

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
NO_THREADS = "thread_unsupported_request"
"""Anthropic's own code. Its clients then continue without a thread that the server keeps."""

_OTHERS, _SERVERS = "invalid_request_error", "api_error"


class AnthropicErrors:
    """Base of Anthropic's dialects."""

    keep_alive = PING

    def error_body(self, problem: GatewayError) -> bytes:
        """See Dialect."""
        kind = _KINDS.get(problem.status, _OTHERS if problem.status < 500 else _SERVERS)
        details = (
            {"details": {"error_code": NO_THREADS, "unsupported": ["thread"]}}
            if problem.code == NO_THREADS
            else {}
        )
        return msgspec.json.encode(
            {"type": "error", "error": {"type": kind, "message": problem.message, **details}}
        )

    def error_event(self, problem: GatewayError) -> bytes:
        """See Dialect."""
        return b"event: error\ndata: " + self.error_body(problem) + b"\n\n"
