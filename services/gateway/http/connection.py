"""Limits of one connection before any key was checked: the size of a head, the time it may take,
and room for new clients.

uvicorn's protocol keeps all headers that come, and waits without end for those that do not. Here a
head that is too large gets 431, and a connection that does not begin a request, or does not finish
one, is closed. When clients hold more connections than the process may open files for, those that
have waited longest without a request are closed, so that `/healthz` and agents still get through.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Literal

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from services.gateway.dialects.openai_errors import openai_error_body
from services.gateway.errors import GatewayError, HeadTooLarge, InvalidRequest
from services.gateway.http.one_write import OneWriteProtocol

KEEP_ALIVE_S = 75
"""Seconds that a connection may be idle between two requests: longer than clients keep theirs."""
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
_CHUNK_BYTES = 16
"""The most bytes that HTTP may add to each byte of a chunked body."""
_AGAIN_S = 0.05
"""Seconds until a reader is woken once more, as its clock may have started a little later."""
_MOST_FILES = 65_536


_Awaited = Literal["request", "head", "body", ""]


class _TooMuch(Exception):
    """The head is over its limits."""


class GuardedProtocol(OneWriteProtocol):
    """One connection. The class's attributes are shared by every connection of one server.

    The limits are checked after each read, not at each header, so that a request that comes in one
    read, as most do, costs almost nothing. So a head may exceed its limit by what one read brings
    (256 KiB) before it is refused.
    """

    request_timeout_s = 60.0
    most_connections = 10_000
    unasked: dict[GuardedProtocol, None]
    """Connections without a request under way, the longest waiting first."""

    _timer: asyncio.TimerHandle | None = None
    _awaited: _Awaited = ""
    """What the timer is for."""
    _refused = _head_refused = False
    _received = 0
    """Bytes of an incomplete head; after the head, of all that came later, less 16 for each byte of
    the body.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections and self.unasked:
            longest = next(iter(self.unasked))
            del self.unasked[longest]
            longest.transport.abort()
        self.unasked[self] = None
        self._wait("request")

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.unasked.pop(self, None)
        self._wait("")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._received += len(data)
        super().data_received(data)
        if self._refused:
            return
        if not self.cycle or self.cycle.scope is not self.scope or self.cycle.response_complete:
            self._wait("head")
        else:
            self.unasked.pop(self, None)
            self._wait("body" if self.cycle.more_body else "")
            if not self.cycle.more_body:
                self._received = 0
        if self._received > MAX_HEAD_BYTES or (self.headers and len(self.headers) > MAX_HEADERS):
            self._refuse(_too_large())

    def on_headers_complete(self) -> None:
        """See httptools."""
        if len(self.headers) > MAX_HEADERS or (
            self._received > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES
        ):
            self._head_refused = True
            raise _TooMuch
        self._received = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._received -= _CHUNK_BYTES * len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        """See uvicorn, which closes the connection after a while without another request."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self.unasked[self] = None
            self._wait("")

    def send_400_response(self, msg: str) -> None:
        """Reply to what is not HTTP, in the API's shape."""
        self._refuse(_too_large() if self._head_refused else InvalidRequest(msg))

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _refuse(self, problem: GatewayError) -> None:
        self._refused = True
        if not self.cycle or self.cycle.response_complete:
            body = openai_error_body(problem)
            self.transport.write(
                STATUS_LINE[problem.status]
                + b"content-type: application/json\r\nconnection: close\r\ncontent-length: "
                b"%d\r\n\r\n" % len(body) + body
            )
        self.transport.close()

    def _wait(self, awaited: _Awaited) -> None:
        """Start the timer of what is awaited now, unless it runs."""
        if awaited == self._awaited:
            return
        self._awaited = awaited
        if self._timer is not None:
            self._timer.cancel()
        self._timer = (
            self.loop.call_later(self.request_timeout_s, self._give_up) if awaited else None
        )

    def _give_up(self) -> None:
        if self._awaited == "body":
            # The reader checks the clock, and answers the client.
            self.cycle.message_event.set()
            self._timer = self.loop.call_later(_AGAIN_S, self._give_up)
        elif not self.transport.is_closing():
            self.transport.close()


def protocol_class(
    write_timeout_s: float,
    request_timeout_s: float = GuardedProtocol.request_timeout_s,
    most_connections: int = 10_000,
) -> type[GuardedProtocol]:
    """The class that uvicorn makes one object of for each connection."""

    class Bounded(GuardedProtocol):
        """A connection with the settings' limits."""

    Bounded.write_timeout_s = write_timeout_s
    Bounded.request_timeout_s = request_timeout_s
    Bounded.most_connections = most_connections
    Bounded.unasked = {}
    return Bounded


def raise_open_files() -> int:
    """Raise the soft limit of open files to the hard limit, at most 65,536. Returns the
    new limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _MOST_FILES if soft == resource.RLIM_INFINITY else soft


def _too_large() -> HeadTooLarge:
    return HeadTooLarge(
        f"The request's head is larger than {MAX_HEAD_BYTES} bytes or has more than {MAX_HEADERS} "
        "headers. Send fewer or shorter headers, or a shorter URL."
    )
