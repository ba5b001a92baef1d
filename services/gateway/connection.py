"""One connection within its bounds, before anybody has shown a key: a head of so many bytes, in so much time, and room for new clients.

uvicorn's protocol keeps all headers that come and waits for ever for what does not. Here a head that is too large gets 431; a connection
that does not begin a request, or begins and does not go on, is closed. Where clients hold more connections than the process may open files
for, those that have waited longest without a request make room: `/healthz` and the agents still get through.
"""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from services.gateway.one_write import OneWriteProtocol
from services.gateway.problems import GatewayError, HeadTooLarge, InvalidRequest

KEEP_ALIVE_S = 75
"""How long a connection may be idle between two requests: longer than clients keep theirs."""
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
_CHUNK_BYTES = 16
"""What HTTP may write around each byte of a body that comes in chunks."""
_MOST_FILES = 65_536


class _TooMuch(Exception):
    """The head has more than is kept of one."""


class GuardedProtocol(OneWriteProtocol):
    """One connection. The class's attributes are every connection's of one server."""

    request_timeout_s = 60.0
    most_connections = 10_000
    unasked: dict[GuardedProtocol, None]
    """Connections without a request under way, the longest waiting first."""

    _timer: asyncio.TimerHandle | None = None
    _begun = _refused = False
    _head = _headers = _overhead = 0
    """Bytes and headers of the head, and bytes of the message that are neither head nor body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections and self.unasked:
            longest = next(iter(self.unasked))
            del self.unasked[longest]
            longest.transport.abort()
        self._wait(self.request_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._begun = False
        super().data_received(data)
        if not self._begun and not self._refused:
            # A header is told of only once it is whole: what has come of it is counted here.
            self._overhead += len(data)
            if self._overhead > MAX_HEAD_BYTES:
                self._refuse(_too_large())

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._begun = True
        self._head = self._headers = self._overhead = 0
        self._wait(self.request_timeout_s)

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools. The trailers of a body in chunks count, too."""
        super().on_header(name, value)
        self._headers += 1
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._stop()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._overhead -= _CHUNK_BYTES * len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        """See uvicorn."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._wait(KEEP_ALIVE_S)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, in the API's shape."""
        self._refuse(_too_large() if self._headers > MAX_HEADERS or self._head > MAX_HEAD_BYTES else InvalidRequest(msg))

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > MAX_HEAD_BYTES or self._headers > MAX_HEADERS:
            raise _TooMuch

    def _refuse(self, problem: GatewayError) -> None:
        self._refused = True
        if not self.cycle or self.cycle.response_complete:
            body = problem.body()
            self.transport.write(
                STATUS_LINE[problem.status]
                + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
                + body
            )
        self.transport.close()

    def _wait(self, seconds: float) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, self._give_up)
        self.unasked[self] = None

    def _stop(self) -> None:
        self.unasked.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def protocol_class(
    write_timeout_s: float, request_timeout_s: float = GuardedProtocol.request_timeout_s, most_connections: int = 10_000
) -> type[GuardedProtocol]:
    """For uvicorn, which makes one of each connection."""

    class Bounded(GuardedProtocol):
        """With the settings' limits."""

    Bounded.write_timeout_s = write_timeout_s
    Bounded.request_timeout_s = request_timeout_s
    Bounded.most_connections = most_connections
    Bounded.unasked = {}
    return Bounded


def raise_open_files() -> int:
    """Let the process open as many files as its hard limit allows, within reason; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _MOST_FILES if soft == resource.RLIM_INFINITY else soft


def _too_large() -> HeadTooLarge:
    return HeadTooLarge(f"The request's head is too large: at most {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers are taken.")
