"""HTTP headers of errors. Their bodies are the dialects'; REST routes have OpenAI's."""

from __future__ import annotations

import math

from services.gateway.errors import (
    GatewayError,
    RequestTimeout,
    TryLater,
    Unauthorized,
    Unavailable,
    UnsupportedEncoding,
    UpstreamRejected,
)


def error_headers(error: GatewayError) -> dict[str, str]:
    """Extra headers of the reply: what HTTP asks for, and when to come back."""
    match error:
        case RequestTimeout():
            # The rest of the body may still come: nothing else can be read from this connection.
            return {"connection": "close"}
        case UnsupportedEncoding(accepted=accepted):
            return {"accept-encoding": accepted}
        case Unauthorized():
            return {"www-authenticate": "Bearer"}
        case Unavailable():
            return {"retry-after": "1"}
        case TryLater(wait_s=wait_s):
            # HTTP has whole seconds; OpenAI's and Anthropic's clients prefer the milliseconds.
            return {
                "retry-after": str(max(1, math.ceil(wait_s))),
                "retry-after-ms": str(max(1, math.ceil(wait_s * 1000))),
            }
        case UpstreamRejected(retry_after=str(retry_after)) if retry_after:
            return {"retry-after": retry_after}
        case _:
            return {}
