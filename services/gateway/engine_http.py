"""HTTP/1.1 towards a model server that is near: connections are kept, a request is one write, an answer is what the parser makes of it.

For plain addresses and POST only. What a general client does besides (redirects, cookies, compression, proxies) costs a call as much as
everything that the gateway does with its answer. A connection serves one request at a time; one whose answer was not read to its end is
closed, which tells the server to stop. Raises OSError where there is no connection, TimeoutError after a silence, BrokenOff.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

_MOST_UNREAD = 256 * 1024
"""Bytes of an answer that wait for a slow client, before the server has to."""

_FIRST_FINAL = 200


class BrokenOff(Exception):
    """The connection ended before the answer did, or what came is no HTTP."""


class Connection(asyncio.Protocol):
    """One request at a time: `ask`, then `piece` until there is none, then `release`."""

    def __init__(self, idle: deque[Connection], silence_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle = idle
        self._silence_s = silence_s
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        """The parser's way to hand over what it found."""
        self._parser = HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._unread = 0
        self._paused = False
        self._error: Exception | None = None
        self._busy = self._complete = self._bounded = self._kept = False
        self.idle_since = 0.0
        self.status = 0
        self.headers: dict[str, str] = {}

    async def ask(self, request: bytes) -> None:
        """Send a request; returns when `status` and `headers` of its answer are there."""
        if self._transport is None:
            raise BrokenOff("closed")
        self._busy, self._complete, self._bounded, self._unread = True, False, False, 0
        self.status, self.headers = 0, {}
        self._transport.write(request)
        while not self.status:
            await self._more()

    async def piece(self) -> bytes:
        """What has come since the last; empty at the end."""
        while not self._pieces:
            if self._complete:
                return b""
            await self._more()
        return self._take()

    async def rest(self) -> bytes:
        """All that is left of the answer."""
        if self._complete:
            return self._take()
        pieces: list[bytes] = []
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    def release(self) -> None:
        """The answer is not needed any more."""
        if self._transport is None:
            return
        if self._complete and self._kept and not self._transport.is_closing():
            self._pieces.clear()
            self._busy, self.idle_since = False, self._loop.time()
            self._idle.append(self)
        else:
            self._transport.abort()

    def close(self) -> None:
        """At once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def usable(self) -> bool:
        """Whether the server has not closed it."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if not self._busy:
            self.close()
            return
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._error = BrokenOff(f"no HTTP: {error}")
            self.close()
        self._unread += len(data)
        if self._unread > _MOST_UNREAD and not self._complete and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if self in self._idle:
            self._idle.remove(self)
        if self.status and not self._bounded and exc is None and self._error is None:
            # Neither a length nor chunks: the end of the connection is the end of the answer.
            self._complete = True
        if not self._complete and self._error is None:
            self._error = BrokenOff(str(exc or "the connection was closed"))
        self._wake()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        known = name.lower()
        self._bounded = self._bounded or known in (b"content-length", b"transfer-encoding")
        self.headers[known.decode("latin-1")] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """See httptools."""
        status = self._parser.get_status_code()
        if status >= _FIRST_FINAL:
            self.status = status

    def on_message_complete(self) -> None:
        """See httptools."""
        if self.status:
            self._complete, self._kept = True, self._parser.should_keep_alive()
        else:
            self.headers = {}

    def _take(self) -> bytes:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._unread = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def _more(self) -> None:
        """Until something has come. Raises TimeoutError, BrokenOff."""
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        self._heard = self._loop.time()
        if self._timer is None:
            # It outlives the request: most are answered long before, and a timer of its own would cost each.
            self._timer = self._loop.call_later(self._silence_s, self._listen)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _listen(self) -> None:
        """Whether it has been silent for too long."""
        self._timer = None
        if self._waiter is None:
            return
        left = self._heard + self._silence_s - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._listen)
        else:
            self._error = TimeoutError()
            self.close()
            self._wake()

    def _wake(self) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if self._error is not None and not self._pieces:
            self._waiter.set_exception(self._error)
        else:
            self._waiter.set_result(None)


class EngineClient:
    """Connections by server; idle ones go after `keep_s`."""

    def __init__(self, connect_s: float, silence_s: float, keep_s: float) -> None:
        self._connect_s = connect_s
        self._silence_s = silence_s
        self._keep_s = keep_s
        self._servers: dict[str, _Server] = {}

    async def post(self, base_url: str, path: str, body: bytes, headers: Mapping[str, str]) -> Connection:
        """The answer, its head read; `release` it. Raises OSError, TimeoutError, BrokenOff, and ValueError for a header of two lines."""
        server = self._servers.get(base_url)
        if server is None:
            server = self._servers[base_url] = _Server(base_url)
        request = server.request(path, body, headers)
        connection = server.idle_one(self._keep_s) or await self._connect(server)
        try:
            await connection.ask(request)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _connect(self, server: _Server) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(lambda: Connection(server.idle, self._silence_s), server.host, server.port)
        except TimeoutError as error:
            raise ConnectionError("it does not accept connections") from error
        return connection

    def close(self) -> None:
        """Close the connections that nobody uses; the others when they are released."""
        for server in self._servers.values():
            for connection in list(server.idle):
                connection.close()


class _Server:
    """An address, and the connections to it that are free: the last one used is used first."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self.host = parts.hostname or ""
        self.port = parts.port or 80
        self.idle: deque[Connection] = deque()
        self._prefix = parts.path.rstrip("/")
        self._netloc = parts.netloc

    def request(self, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """A whole request."""
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise ValueError("a header has a line break")
        head = f"POST {self._prefix}{path} HTTP/1.1\r\nhost: {self._netloc}\r\n{lines}content-length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def idle_one(self, keep_s: float) -> Connection | None:
        """A connection that can be used again; closes those that cannot."""
        oldest = asyncio.get_running_loop().time() - keep_s
        while self.idle and self.idle[0].idle_since < oldest:
            self.idle.popleft().close()
        while self.idle:
            connection = self.idle.pop()
            if connection.usable():
                return connection
        return None
