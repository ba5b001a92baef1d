"""A stream of server-sent events to a client, kept alive through silence if the client or the
operator wants that.

Proxies and clients close a connection that is silent for a while: during a long prompt, a long
thought, a queue. With a keep-alive the stream sends something that every client skips (`:
keep-alive`, or the API's own). It does so between events only, from the first silence to the last
byte: also before the upstream's first event, and while the end of the answer waits for the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from starlette.types import Send

from services.gateway.errors import InvalidRequest
from services.gateway.http import asgi

KEEP_ALIVE_HEADER = b"x-fulgurite-keep-alive"

_SHORTEST_S, _LONGEST_S = 0.1, 3600.0


def keep_alive_s(headers: asgi.Headers, default_s: float) -> float:
    """The longest silence that the client wants, in seconds; 0 is no limit. Raises
    InvalidRequest.
    """
    asked = asgi.header(headers, KEEP_ALIVE_HEADER)
    if asked is None:
        return default_s
    try:
        seconds = float(asked)
    except ValueError:
        seconds = -1.0
    if seconds != 0 and not _SHORTEST_S <= seconds <= _LONGEST_S:
        allowed = f"seconds between {_SHORTEST_S:g} and {_LONGEST_S:g}, or 0 for none"
        raise InvalidRequest(
            f"The header {KEEP_ALIVE_HEADER.decode()} is {asked[:40]!r}. Send {allowed}."
        )
    return seconds


class EventStream:
    """A reply with status 200 and events as its body. An async context manager."""

    def __init__(self, send: Send, headers: Callable[[], list[asgi.Header]]) -> None:
        """`headers` returns the reply's headers; it is called when the reply begins."""
        self.begun = False
        """Whether the client has the status: from then on an error is sent as an event."""
        self._send = send
        self._headers = headers

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop_keep_alive()

    async def stop_keep_alive(self) -> None:
        """Send nothing on its own any more, so that `begun` changes no more."""

    async def start(self) -> None:
        """Begin the reply, unless it has begun."""
        if not self.begun:
            await asgi.start(
                self._send,
                200,
                [asgi.EVENT_STREAM, (b"cache-control", b"no-cache"), *self._headers()],
            )
            self.begun = True

    async def piece(self, events: bytes) -> None:
        """Send events."""
        # As `asgi.piece` does, without one more coroutine for each event.
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self, events: bytes) -> None:
        """Send the last events."""
        await self.stop_keep_alive()
        await asgi.piece(self._send, events, last=True)


class KeptAlive(EventStream):
    """A stream that is never silent for longer than some seconds."""

    def __init__(
        self, send: Send, headers: Callable[[], list[asgi.Header]], beat: bytes, silence_s: float
    ) -> None:
        super().__init__(send, headers)
        self._beat = beat
        self._silence_s = silence_s
        # A slow client delays a send, and no other event may overtake it.
        self._turn = asyncio.Lock()
        self._between_events = True
        self._last = 0.0
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._last = asyncio.get_running_loop().time()
        self._beating = asyncio.create_task(self._keep_alive())
        return self

    async def stop_keep_alive(self) -> None:
        """See EventStream."""
        beating, self._beating = self._beating, None
        if beating is not None:
            beating.cancel()
            await asyncio.wait((beating,))

    async def start(self) -> None:
        """See EventStream."""
        async with self._turn:
            await super().start()

    async def piece(self, events: bytes) -> None:
        """See EventStream."""
        async with self._turn:
            await super().piece(events)
            self._between_events = events.endswith(b"\n\n")
            self._last = asyncio.get_running_loop().time()

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.0, self._last + self._silence_s - loop.time()))
            if loop.time() < self._last + self._silence_s:
                continue
            async with self._turn:
                if self._between_events:
                    await super().start()
                    await super().piece(self._beat)
                self._last = loop.time()
