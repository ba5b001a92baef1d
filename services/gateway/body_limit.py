"""A bound on request bodies for the REST routes; the hot route bounds its own (`wire.read_body`)."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway import wire


class BodyLimit:
    """Raw ASGI middleware."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 413 itself when the declared length is over the limit; counts where none is declared."""
        if scope["type"] != "http" or scope["path"].endswith("/chat/completions"):
            await self._app(scope, receive, send)
            return
        declared = wire.header(scope, b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self._limit:
            await wire.reply_problem(send, wire.too_large(self._limit), [])
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._limit:
                raise wire.too_large(self._limit)
            return message

        await self._app(scope, counted, send)
