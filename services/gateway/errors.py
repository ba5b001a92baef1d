"""The gateway's error tree. Each error carries data; `http/error_responses.py` and the dialects
render it. Messages say what to do.

GatewayError                 status, OpenAI type and code, and how a call that ends with it is recorded
├── InvalidRequest      400  malformed JSON, a wrong type, a value out of range
│   ├── RequestTimeout  408  the body did not arrive in time
│   ├── BodyTooLarge    413  more bytes or more JSON values than the limits allow
│   ├── UnsupportedEncoding 415  its Content-Encoding is not supported
│   └── HeadTooLarge    431  a larger head than the limits allow
├── Unauthorized        401  no key, or an unknown key
│   └── ExpiredKey      401  a scoped key past its deadline and grace; names its claims
├── Forbidden           403  a valid key without the right to do this
├── NotFound            404  unknown rollout, response or path
│   └── UnknownModel    404  unknown alias
├── NotSupported        404  a part of an API that would bypass the log
├── Conflict            409  an idempotency key seen with another payload
├── TryLater                 nothing was generated; try again after `wait_s`
│   ├── RateLimited     429  the key is over its own limits
│   └── Overloaded      503  no free place at the model server, or it is loading an adapter
│       └── NotReady    503  it has restarted, and has not loaded its version yet
├── Unavailable         503  the log (or the shared store) is away; nothing was generated, or it is withheld
│   └── Unrecordable    503  an event that does not fit its schema: no later try would help
└── UpstreamFailed           the model server failed
    ├── UpstreamRejected     it answered with an error status
    ├── UpstreamUnreachable 502  no connection
    ├── UpstreamBroken   502  the answer broke off or is not one
    └── UpstreamTimeout  504
ClientGone                   the client has gone; never leaves the gateway
"""  # noqa: E501 - a table

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import ClassVar

import msgspec

from fulgurite.enums import CallOutcome
from fulgurite.failures import FailureKind
from services.gateway.dialects.foreign_json import UNREADABLE
from services.gateway.identity.claims import Claims

_CONTEXT_OVERFLOW = re.compile(
    r"maximum (context|model) length|context[ _]length|context window", re.IGNORECASE
)

_LONGEST_QUOTE = 256

_UNAUTHORIZED = 401
_TOO_MANY_REQUESTS = 429
_DEPLOYMENTS_FAULT = (_UNAUTHORIZED, 403, 404)
"""Wrong key, permission, model or stored answer: the deployment is at fault, not the policy."""
_CLIENTS_FAULT = (400, 404, 422)
"""Errors that keep OpenAI's type for the client's own mistakes."""
_PASSED_ON = (501, 503, 529)
"""Statuses that the client gets unchanged: not implemented, unavailable, Anthropic's overloaded."""


def clipped(text: str) -> str:
    """What a client sent, short enough to be repeated in an error."""
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


class GatewayError(Exception):
    """Base of every error that a client may see."""

    status: int = 500
    kind: str = "server_error"
    """OpenAI's type."""
    code: str | None = None
    outcome: ClassVar[CallOutcome] = CallOutcome.refused
    failure: FailureKind = FailureKind.unknown

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message: str = message
        self.param = param
        self.code = code or self.code


class InvalidRequest(GatewayError):
    """The request is invalid."""

    status = 400
    kind = "invalid_request_error"


class BodyTooLarge(InvalidRequest):
    """The body is over the limit."""

    status = 413
    code = "body_too_large"


class RequestTimeout(InvalidRequest):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"


class UnsupportedEncoding(InvalidRequest):
    """The body's Content-Encoding is not supported."""

    status = 415
    code = "unsupported_encoding"

    def __init__(self, encoding: str, accepted: Sequence[str]) -> None:
        self.accepted = ", ".join(accepted)
        super().__init__(
            f"The body's Content-Encoding {clipped(encoding)!r} is not supported. Send the body "
            f"uncompressed, or with one of: {self.accepted}."
        )


class HeadTooLarge(InvalidRequest):
    """More headers, or a longer URL, than the limits allow."""

    status = 431
    code = "head_too_large"


class Unauthorized(GatewayError):
    """No key, or an unknown key."""

    status = 401
    kind = "authentication_error"
    code = "invalid_api_key"


class ExpiredKey(Unauthorized):
    """A genuine scoped key after its expiry."""

    code = "expired_api_key"
    failure = FailureKind.agent_timeout

    def __init__(self, message: str, claims: Claims) -> None:
        super().__init__(message)
        self.claims = claims


class Forbidden(GatewayError):
    """A valid key without the right to do this."""

    status = 403
    kind = "permission_error"
    code = "wrong_scope"


class NotFound(GatewayError):
    """Unknown rollout, response or path."""

    status = 404
    kind = "invalid_request_error"
    code = "not_found"


class UnknownModel(NotFound):
    """An alias that this gateway does not serve, or a version that no backend serves."""

    code = "model_not_found"

    def __init__(self, alias: str, known: Iterable[str], param: str = "model") -> None:
        version = " No backend serves this version now." if "@" in alias else ""
        super().__init__(
            f"Unknown model {alias!r}.{version} This gateway serves: {', '.join(sorted(known))}.",
            param=param,
        )


class NotSupported(GatewayError):
    """A part of an API that this gateway does not have."""

    status = 404
    kind = "invalid_request_error"
    code = "not_supported"


class Conflict(GatewayError):
    """An idempotency key seen with another payload."""

    status = 409
    kind = "invalid_request_error"
    code = "idempotency_conflict"


class Unavailable(GatewayError):
    """The log cannot take the call now."""

    status = 503
    code = "log_unavailable"
    failure = FailureKind.infrastructure


class Unrecordable(Unavailable):
    """The event does not fit its schema; without the answer it would."""


class TryLater(GatewayError):
    """Nothing was generated. OpenAI's and Anthropic's clients wait as long as the reply says, and
    try again.
    """

    failure = FailureKind.rate_limited

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class RateLimited(TryLater):
    """The key is over its own limits."""

    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"


class Overloaded(TryLater):
    """No free place at the model server."""

    status = 503
    code = "overloaded"


class NotReady(Overloaded):
    """The engine has restarted, and its applier has not brought it to its version yet. Raised only
    after a call has waited for that.
    """

    code = "version_not_loaded"
    failure = FailureKind.infrastructure

    def __init__(self, backend: str, version: str) -> None:
        super().__init__(
            f"The model server {backend!r} has restarted and is loading {version}. Nothing was "
            "generated; try again shortly.",
            1.0,
        )


class UpstreamFailed(GatewayError):
    """The model server failed."""

    status = 502
    kind = "upstream_error"
    code = "upstream_error"
    outcome = CallOutcome.upstream_error
    failure = FailureKind.upstream_error


class UpstreamUnreachable(UpstreamFailed):
    """No connection to the model server."""

    code = "upstream_unreachable"


class UpstreamBroken(UpstreamFailed):
    """The answer broke off, or is not one."""

    code = "upstream_broken"


class UpstreamTimeout(UpstreamFailed):
    """The model server did not answer in time."""

    status = 504
    code = "upstream_timeout"
    outcome = CallOutcome.upstream_timeout
    failure = FailureKind.upstream_timeout


class UpstreamRejected(UpstreamFailed):
    """The model server answered with an error status; its own message is passed on."""

    def __init__(
        self, backend: str, status: int, body: bytes, retry_after: str | None = None
    ) -> None:
        words, param = _upstream_words(body)
        super().__init__(f"The model server {backend!r} answered {status}: {words}", param=param)
        self.retry_after = retry_after
        self.upstream_status = status
        if status in _DEPLOYMENTS_FAULT:
            self.failure = FailureKind.infrastructure
            if status == _UNAUTHORIZED:
                # The agent's own key is valid; the deployment's key for the upstream is not.
                self.message = (
                    f"{self.message} (check the upstream's key in the gateway's settings)"
                )
            else:
                self.status, self.code = status, "upstream_rejected"
        elif status == _TOO_MANY_REQUESTS:
            self.status, self.code, self.failure = status, "rate_limited", FailureKind.rate_limited
        elif 400 <= status < 500:
            self.status, self.failure = status, FailureKind.unknown
            self.code = "upstream_rejected"
            if _CONTEXT_OVERFLOW.search(words):
                self.code, self.failure = "context_length_exceeded", FailureKind.context_overflow
        elif status in _PASSED_ON:
            self.status = status
        if self.status in _CLIENTS_FAULT:
            self.kind = "invalid_request_error"


class ClientGone(Exception):
    """The client closed the connection before the answer was complete."""


class _Words(msgspec.Struct):
    message: str = ""
    param: str | None = None


class _Error(msgspec.Struct):
    error: _Words | str | None = None
    message: str | None = None
    detail: str | None = None


def _upstream_words(body: bytes) -> tuple[str, str | None]:
    """Message and parameter of an upstream's error body, whatever its shape."""
    try:
        parsed = msgspec.json.decode(body, type=_Error)
    except UNREADABLE:
        return body[:500].decode("utf-8", "replace").strip() or "(empty body)", None
    if isinstance(parsed.error, str):
        return parsed.error, None
    if parsed.error is not None:
        return parsed.error.message, parsed.error.param
    return parsed.message or parsed.detail or body[:500].decode("utf-8", "replace"), None
