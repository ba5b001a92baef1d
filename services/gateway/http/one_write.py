"""uvicorn's protocol, with a reply's head and body in one write to the socket instead of two: a
write costs more than a reply's Python.

The head waits for what follows it, but only for this turn of the event loop. A client that reads
nothing of its reply for a while is disconnected, since it would hold its place at a backend.
Everything else is uvicorn's.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD = b"HTTP/1.1 "


class OneWriteProtocol(HttpToolsProtocol):
    """One connection."""

    write_timeout_s = 60.0
    """Seconds in which a client must read something while the transport's buffer is full."""

    _unread: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """The client does not keep up. Nothing more is written until it has read most of the
        buffer, 64 KiB beyond the sockets' own.
        """
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._stop_waiting()
        super().resume_writing()

    def _await_reading(self) -> None:
        self._unread = self.loop.call_later(
            self.write_timeout_s, self._check_reading, self.transport.get_write_buffer_size()
        )

    def _check_reading(self, before: int) -> None:
        """Disconnect the client unless it has read some of the `before` bytes: a large reply may
        take longer than the limit.
        """
        if self.transport.get_write_buffer_size() < before:
            self._await_reading()
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(
            cast(asyncio.Transport, HeadHolder(cast(asyncio.Transport, transport), self.loop))
        )


class HeadHolder:
    """A transport that holds heads back; in all else the transport it is given."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        # Bound once, as each call asks it.
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, a head in front if one waits."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(_HEAD):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        """Write what waits, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)
