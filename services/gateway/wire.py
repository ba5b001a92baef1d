"""Raw ASGI, for the routes that every call takes: headers, a bounded body, a whole reply, a client that goes away.

`ClientWatch` cancels what runs inside it when the client closes the connection, and turns that into ClientGone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType

from starlette.types import Message, Receive, Scope, Send

from services.gateway.problems import BodyTooLarge, ClientGone, GatewayError

JSON = (b"content-type", b"application/json")
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")

Header = tuple[bytes, bytes]
Headers = Mapping[bytes, bytes]


def headers_of(scope: Scope) -> Headers:
    """A request's, by their lower-case names; of several alike the first."""
    return dict(reversed(scope["headers"]))


def header(headers: Headers, name: bytes) -> str | None:
    """One of them, as text."""
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def authorization(headers: Headers) -> str | None:
    """The key, as a bearer token; Anthropic's clients send it as `x-api-key`."""
    named = header(headers, b"authorization")
    if named is None and (key := header(headers, b"x-api-key")) is not None:
        return f"Bearer {key}"
    return named


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as that is known, ClientGone."""
    declared = headers.get(b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    if not message.get("more_body", False):
        return _bounded(message.get("body", b""), limit)
    pieces = [message.get("body", b"")]
    size = len(pieces[0])
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > limit:
            raise _too_large(limit)
    return _bounded(b"".join(pieces), limit)


def _bounded(body: bytes, limit: int) -> bytes:
    if len(body) > limit:
        raise _too_large(limit)
    return body


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is over the limit of {limit} bytes. Send less, or raise FULGURITE_MAX_BODY_BYTES.")


async def start(send: Send, status: int, headers: list[Header]) -> None:
    """Begin a reply."""
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def reply(send: Send, status: int, body: bytes, headers: list[Header]) -> None:
    """A whole JSON reply."""
    await start(send, status, [JSON, (b"content-length", str(len(body)).encode()), *headers])
    await send({"type": "http.response.body", "body": body})


async def reply_problem(send: Send, problem: GatewayError, headers: list[Header], body: bytes | None = None) -> None:
    """An error, in OpenAI's shape unless its body is given."""
    extra = [(name.encode(), value.encode()) for name, value in problem.headers().items()]
    await reply(send, problem.status, problem.body() if body is None else body, [*headers, *extra])


async def piece(send: Send, data: bytes, *, last: bool = False) -> None:
    """A piece of a begun reply."""
    await send({"type": "http.response.body", "body": data, "more_body": not last})


_AT_ONCE_S = 0.05
"""What is answered sooner is not watched: it would cost as much as the reply itself, and nothing is won."""


class ClientWatch:
    """`async with ClientWatch(receive): ...` raises ClientGone inside once the client has closed the connection: at once, but for the
    first moment.
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

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
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
