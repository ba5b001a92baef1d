"""Raw ASGI for the routes of calls: headers, a limited body, a complete reply, a client that goes
away.

`ClientWatch` cancels what runs inside it when the client closes the connection, and raises
ClientGone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from time import monotonic
from types import TracebackType

from starlette.types import Message, Receive, Scope, Send

from services.gateway.dialects.openai_errors import openai_error_body
from services.gateway.errors import ClientGone, GatewayError, RequestTimeout
from services.gateway.http.content_encodings import TooLong, inflate
from services.gateway.http.error_responses import error_headers
from services.gateway.request_body import BYTE_ORDER_MARK, BodyLimits, check_limits, too_large

JSON = (b"content-type", b"application/json")
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,64})?")
_LONGEST_LENGTH = 18
"""Most digits of a Content-Length: an exabyte."""

Header = tuple[bytes, bytes]
Headers = Mapping[bytes, bytes]


def headers_of(scope: Scope) -> Headers:
    """A request's headers by lower-case name; the first of several equal ones."""
    return dict(reversed(scope["headers"]))


def header(headers: Headers, name: bytes) -> str | None:
    """One header as text."""
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def traceparent(headers: Headers) -> str | None:
    """The agent's trace context; an invalid one is ignored."""
    value = headers.get(b"traceparent")
    return value.decode("ascii") if value is not None and _TRACEPARENT.fullmatch(value) else None


def authorization(headers: Headers) -> str | None:
    """The key, as a bearer token; Anthropic's clients send it as `x-api-key`."""
    named = header(headers, b"authorization")
    if named is None and (key := header(headers, b"x-api-key")) is not None:
        return f"Bearer {key}"
    return named


async def read_body(headers: Headers, receive: Receive, limits: BodyLimits) -> bytes:
    """The complete body: inflated, without a byte order mark. Raises InvalidRequest and its
    subclasses, ClientGone.
    """
    if _declares_more(headers, limits.size):
        raise too_large(limits)
    body = await _received(receive, limits)
    encoding = headers.get(b"content-encoding")
    if encoding is not None:
        try:
            body = await inflate(body, encoding.decode("latin-1"), limits.size)
        except TooLong as error:
            raise too_large(limits) from error
    await check_limits(body, limits)
    return body.removeprefix(BYTE_ORDER_MARK)


async def _received(receive: Receive, limits: BodyLimits) -> bytes:
    """All pieces of the body. The connection's protocol wakes a reader whose time is over: a timer
    here would cost every call.
    """
    pieces: list[bytes] = []
    size, more = 0, True
    begun = monotonic()
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > limits.size:
            raise too_large(limits)
        more = message.get("more_body", False)
        if more and monotonic() - begun > limits.timeout_s:
            raise RequestTimeout(
                f"The body did not arrive within {limits.timeout_s:g} s "
                "(FULGURITE_REQUEST_TIMEOUT_S). Send it again."
            )
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _declares_more(headers: Headers, limit: int) -> bool:
    """Whether Content-Length is over the limit; it may have more digits than Python reads."""
    declared = headers.get(b"content-length", b"").lstrip(b"0")
    return declared.isdigit() and (len(declared) > _LONGEST_LENGTH or int(declared) > limit)


async def start(send: Send, status: int, headers: list[Header]) -> None:
    """Begin a reply."""
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def reply(send: Send, status: int, body: bytes, headers: list[Header]) -> None:
    """Send a complete JSON reply."""
    await start(send, status, [JSON, (b"content-length", str(len(body)).encode()), *headers])
    await send({"type": "http.response.body", "body": body})


async def reply_problem(
    send: Send, problem: GatewayError, headers: list[Header], body: bytes | None = None
) -> None:
    """Send an error, in OpenAI's shape unless its body is given."""
    extra = [(name.encode(), value.encode()) for name, value in error_headers(problem).items()]
    await reply(
        send,
        problem.status,
        openai_error_body(problem) if body is None else body,
        [*headers, *extra],
    )


async def piece(send: Send, data: bytes, *, last: bool = False) -> None:
    """Send a piece of a reply."""
    await send({"type": "http.response.body", "body": data, "more_body": not last})


_AT_ONCE_S = 0.05
"""Seconds before the watch begins. Watching a call that ends sooner would cost as much as its
reply, and gain nothing.
"""


class ClientWatch:
    """`async with ClientWatch(receive): ...` raises ClientGone inside as soon as the client closes
    the connection, from 50 ms on.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._watcher: asyncio.Task[None] | None = None
        self._watched: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> ClientWatch:
        self._watched = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(_AT_ONCE_S, self._begin)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._gone and self._watched is not None:
            self._watched.uncancel()
            if kind is asyncio.CancelledError:
                raise ClientGone from error

    def _begin(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await self._receive()
        self._gone = True
        if self._watched is not None:
            self._watched.cancel()
