"""A bound on request bodies for the REST routes; the hot route bounds its own, and reads it the same way (`wire.read_body`)."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway import wire
from services.gateway.dialects import DIALECTS
from services.gateway.problems import BodyTooLarge, ClientGone

_OWN = tuple(dialect.path for dialect in DIALECTS)


class BodyLimit:
    """Raw ASGI middleware: reads the body within the limit, or answers 413 itself."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Only routes with a body are looked at."""
        if scope["type"] != "http" or scope["method"] == "GET" or scope["path"].endswith(_OWN):
            await self._app(scope, receive, send)
            return
        try:
            body = await wire.read_body(wire.headers_of(scope), receive, self._limit)
        except BodyTooLarge as problem:
            await wire.reply_problem(send, problem, [])
            return
        except ClientGone:
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, replay, send)
