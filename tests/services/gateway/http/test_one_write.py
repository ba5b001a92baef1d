"""A head waits for its body, but not for long: never lost, never out of order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast
from unittest.mock import MagicMock

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from services.gateway.http.connection import protocol_class
from services.gateway.http.one_write import HeadHolder, OneWriteProtocol

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Wire(asyncio.Transport):
    """Remembers what was written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("client", 1)})
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        """See asyncio.Transport."""
        assert not self.closed
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        """See asyncio.Transport."""
        return self.closed

    def close(self) -> None:
        """See asyncio.Transport."""
        self.closed = True


async def test_a_head_leaves_with_its_body() -> None:
    wire = Wire()
    holder = HeadHolder(wire, asyncio.get_running_loop())
    holder.write(HEAD)
    assert wire.written == []
    holder.write(b"body")
    holder.write(b"more")
    await asyncio.sleep(0)
    assert wire.written == [HEAD + b"body", b"more"]
    assert holder.get_extra_info("peername") == ("client", 1)


async def test_a_head_without_a_body_leaves_at_once() -> None:
    wire = Wire()
    holder = HeadHolder(wire, asyncio.get_running_loop())
    holder.write(HEAD)
    await asyncio.sleep(0)
    holder.write(b"body")
    assert wire.written == [HEAD, b"body"]


async def test_a_head_leaves_before_the_connection_closes() -> None:
    wire = Wire()
    holder = HeadHolder(wire, asyncio.get_running_loop())
    holder.write(HEAD)
    holder.close()
    await asyncio.sleep(0)
    assert (wire.written, wire.closed, holder.is_closing()) == ([HEAD], True, True)


async def test_a_head_for_nobody_is_dropped() -> None:
    wire = Wire()
    HeadHolder(wire, asyncio.get_running_loop()).write(HEAD)
    wire.close()
    await asyncio.sleep(0)
    assert wire.written == []


@asynccontextmanager
async def serving(
    app: object, write_timeout_s: float
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to uvicorn with such a limit."""
    config = uvicorn.Config(cast(Any, app), lifespan="off", log_config=None)
    config.load()
    state, made = ServerState(), protocol_class(write_timeout_s)
    server = await asyncio.get_running_loop().create_server(
        lambda: made(config, state, {}), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1024)
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()
        await server.wait_closed()


async def test_a_client_that_reads_nothing_is_disconnected() -> None:
    gone = asyncio.Event()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send(
                    {"type": "http.response.body", "body": bytes(100_000), "more_body": True}
                )
                await asyncio.sleep(0)

        writing = asyncio.create_task(write())
        while (await receive())["type"] != "http.disconnect":
            pass
        writing.cancel()
        gone.set()

    async with serving(app, 0.05) as (_, writer):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(gone.wait(), 30)


class FullWire(Wire):
    """Has bytes that the client has not read."""

    unread = 5_000_000
    aborted = False

    def get_write_buffer_size(self) -> int:
        """See asyncio.WriteTransport."""
        return self.unread

    def abort(self) -> None:
        """See asyncio.WriteTransport."""
        self.aborted = True


async def test_a_client_is_disconnected_only_where_it_has_read_nothing_since() -> None:
    config = uvicorn.Config(cast(Any, MagicMock()), lifespan="off", log_config=None)
    config.load()
    loop, wire = MagicMock(), FullWire()
    protocol = OneWriteProtocol(config, ServerState(), {}, loop)
    protocol.connection_made(wire)
    protocol.pause_writing()
    for unread in (4_000_000, 3_999_999):
        wire.unread = unread
        _, check, *arguments = loop.call_later.call_args.args
        check(*arguments)
        assert not wire.aborted
    _, check, *arguments = loop.call_later.call_args.args
    check(*arguments)
    assert wire.aborted


async def test_a_client_that_reads_late_gets_everything() -> None:
    size = 20_000_000
    full = asyncio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", str(size).encode())],
            }
        )
        await send({"type": "http.response.body", "body": bytes(size), "more_body": True})
        full.set()
        await send({"type": "http.response.body", "body": b""})

    async with serving(app, 60) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await full.wait()
        await reader.readuntil(b"\r\n\r\n")
        assert len(await reader.readexactly(size)) == size


async def test_uvicorn_serves_whole_replies_and_streams_with_it() -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        whole = scope["path"] == "/whole"
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"4")] if whole else [],
            }
        )
        if not whole:
            await go_on.wait()
        await send({"type": "http.response.body", "body": b"body"})

    config = uvicorn.Config(cast(Any, app), lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: OneWriteProtocol(config, state, {}), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"GET /whole HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\nbody")).startswith(b"HTTP/1.1 200 OK\r\n")
    writer.write(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"transfer-encoding: chunked" in await reader.readuntil(b"\r\n\r\n")
    go_on.set()
    assert await reader.readuntil(b"0\r\n\r\n") == b"4\r\nbody\r\n0\r\n\r\n"
    writer.close()
    server.close()
    await server.wait_closed()
