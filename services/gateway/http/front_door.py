"""The outermost ASGI app: calls go to their endpoint directly, everything else to the FastAPI app.

The app's middleware and routing would cost a call as much as all that is done for it here. A call
does not need them: its endpoint limits the body itself, and here an unexpected error is answered
and logged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

OnError = Callable[[Request, Exception], Awaitable[Response]]


class FrontDoor:
    """Raw ASGI around the app. `hot` is filled when the app starts; `on_error` makes the reply to
    an unexpected error.
    """

    def __init__(self, app: ASGIApp, hot: Mapping[str, ASGIApp], on_error: OnError) -> None:
        self._app = app
        self._hot = hot
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route by exact path; a path that names a rollout goes through the app's routing."""
        hot = (
            self._hot.get(scope["path"])
            if scope["type"] == "http" and scope["method"] == "POST"
            else None
        )
        if hot is None:
            await self._app(scope, receive, send)
            return
        try:
            await hot(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the edge of the process: a bug is answered and logged, and the next call served
            reply = await self._on_error(Request(scope), error)
            # If a reply has begun, no error can be sent: the server refuses a second start.
            with suppress(RuntimeError):
                await reply(scope, receive, send)
