"""Check the key, then the body, before a REST route runs. Calls do both themselves.

Without a key nobody makes the gateway read a body. A body is read as JSON whatever its Content-Type
is, inflated and within its limits. What JSON cannot hold (half a character, an infinite number)
never reaches a route.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.runtime.clock import now_ms
from services.gateway.errors import (
    ClientGone,
    ExpiredKey,
    GatewayError,
    InvalidRequest,
    Unauthorized,
)
from services.gateway.http import asgi
from services.gateway.identity.authenticator import ADMIN_KEY, REWARD_KEY, STATUS_KEY, Authenticator
from services.gateway.identity.rollout_resolver import ROLLOUT_ID_HEADER
from services.gateway.request_body import BodyLimits, decode_body

_ROLLOUTS = "/v1/rollouts"
_REWARDS = "/v1/rewards"
_OPERATIONS = ("/metrics", "/docs", "/redoc", "/openapi.json")
_REPLACED = (b"content-type", b"content-encoding", b"content-length")


class RestGuard:
    """Raw ASGI middleware."""

    def __init__(self, app: ASGIApp, limits: BodyLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or reply with the error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope, receive = await self._checked(_with_authorization(scope), receive)
        except ClientGone:
            return
        except GatewayError as problem:
            named = (
                [(ROLLOUT_ID_HEADER, problem.claims.rollout.encode())]
                if isinstance(problem, ExpiredKey)
                else []
            )
            await asgi.reply_problem(send, problem, named)
            return
        await self._app(scope, receive, send)

    async def _checked(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """The request as the route gets it. Raises GatewayError, ClientGone."""
        path, headers = scope["path"], asgi.headers_of(scope)
        authenticator: Authenticator = scope["app"].state.authenticator
        if path.startswith(_OPERATIONS) and not authenticator.is_operator(
            asgi.authorization(headers)
        ):
            raise Unauthorized(
                "This page is for operators: send `Authorization: Bearer <key>` with "
                "FULGURITE_OPERATIONS_KEY."
            )
        if scope["method"] != "POST" or not (
            path in (_REWARDS, _ROLLOUTS) or path.startswith(f"{_ROLLOUTS}/")
        ):
            return scope, receive
        authenticator.admit(asgi.authorization(headers), now_ms(), _wanted(path))
        body = await asgi.read_body(headers, receive, self._limits)
        if not isinstance(decode_body(body, "the fields that /docs names"), dict):
            raise InvalidRequest("The body must be a JSON object. See /docs for the fields.")
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        kept = [(name, value) for name, value in scope["headers"] if name not in _REPLACED]
        return {**scope, "headers": [*kept, asgi.JSON]}, replay


def _with_authorization(scope: Scope) -> Scope:
    """The request with an `x-api-key` also as `authorization`, where routes look for the key."""
    headers = asgi.headers_of(scope)
    key = asgi.authorization(headers)
    if key is None or b"authorization" in headers:
        return scope
    return {**scope, "headers": [*scope["headers"], (b"authorization", key.encode("latin-1"))]}


def _wanted(path: str) -> str:
    if path == _REWARDS:
        return REWARD_KEY
    return STATUS_KEY if path.endswith("/status") else ADMIN_KEY
