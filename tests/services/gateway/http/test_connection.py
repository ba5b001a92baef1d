"""Connections of clients that have shown no key: heads, silence and numbers are bounded, and the
next client gets through.
"""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, cast

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from services.gateway.errors import RequestTimeout
from services.gateway.http.asgi import read_body, reply_problem
from services.gateway.http.connection import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    protocol_class,
    raise_open_files,
)
from services.gateway.request_body import BodyLimits

GET = b"GET / HTTP/1.1\r\nhost: x\r\n"
Connect = Callable[[], Any]


async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Without a look at the body."""
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


async def echo(_scope: Scope, receive: Receive, send: Send) -> None:
    """The length of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(size).encode()
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(
    app: object = answer, request_timeout_s: float = 60.0, most: int = 100, keep_alive_s: int = 60
) -> AsyncGenerator[Connect]:
    """Makes connections to uvicorn with such limits."""
    config = uvicorn.Config(
        cast(Any, app), lifespan="off", log_config=None, timeout_keep_alive=keep_alive_s
    )
    config.load()
    state, made = ServerState(), protocol_class(60.0, request_timeout_s, most)
    async with AsyncExitStack() as stack:
        server = await asyncio.get_running_loop().create_server(
            lambda: made(config, state, {}), "127.0.0.1", 0
        )
        stack.push_async_callback(server.wait_closed)
        stack.callback(server.close)

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            stack.callback(writer.close)
            return reader, writer

        yield connect


async def said(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = int(
        next(
            line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        ).split(b":")[1]
    )
    return int(head.split()[1]), await reader.readexactly(length)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side closes. A reset drops nothing that came before it, as it
    would from one `read()` of everything.
    """
    came = b""
    with suppress(ConnectionResetError):
        while piece := await asyncio.wait_for(reader.read(65_536), 10):
            came += piece
    return came


async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
    """The other side may have closed meanwhile."""
    try:
        writer.write(data)
        await writer.drain()
    except ConnectionError:
        return


@pytest.mark.parametrize(
    "head",
    [
        GET + b"a: b\r\n" * MAX_HEADERS + b"\r\n",
        GET + b"a: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n",
        GET + b"a" * 1000 + b": " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
async def test_a_head_has_an_end(head: bytes) -> None:
    async with serving() as connect:
        reader, writer = await connect()
        await write(writer, head)
        status, body = await said(reader)
        assert (status, json.loads(body)["error"]["code"]) == (431, "head_too_large")
        assert await ended(reader) == b""


async def test_a_header_without_an_end_is_not_kept() -> None:
    async with serving() as connect:
        reader, writer = await connect()
        await write(writer, GET + b"a: ")
        for _ in range(64):
            await write(writer, b"b" * 65_536)
        # What is still under way when it is closed may cost the client the answer.
        assert await ended(reader) is not None


async def test_trailers_without_an_end_are_not_kept() -> None:
    async with serving(echo) as connect:
        reader, writer = await connect()
        await write(
            writer,
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n",
        )
        for _ in range(10 * MAX_HEADERS):
            await write(writer, b"a: b\r\n")
            await asyncio.sleep(0)
        await ended(reader)


async def test_heads_and_bodies_within_the_bounds_pass_on_one_connection() -> None:
    async with serving(echo) as connect:
        reader, writer = await connect()
        for size in (0, 5, 500_000):
            await write(
                writer,
                b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\na: %s\r\n\r\n"
                % (size, b"b" * 50_000)
                + bytes(size),
            )
            assert await said(reader) == (200, str(size).encode())
        await write(
            writer,
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            + b"1\r\nx\r\n" * 40_000
            + b"0\r\n\r\n",
        )
        assert await said(reader) == (200, b"40000")
        many = b"".join(b"h%d: x\r\n" % number for number in range(MAX_HEADERS - 1))
        await write(writer, (b"GET / HTTP/1.1\r\n" + many + b"\r\n") * 20)
        for _ in range(20):
            assert await said(reader) == (200, b"0")


async def test_what_is_no_http_is_refused_in_the_apis_shape() -> None:
    async with serving() as connect:
        reader, writer = await connect()
        await write(writer, b"\x16\x03\x01nonsense\r\n\r\n")
        status, body = await said(reader)
        assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GE", GET, GET + b"a: "])
async def test_silence_before_a_whole_head_closes_the_connection(sent: bytes) -> None:
    async with serving(request_timeout_s=0.05) as connect:
        reader, writer = await connect()
        await write(writer, sent)
        assert await ended(reader) == b""


UNENDED = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nx"


async def test_a_refused_body_that_does_not_end_closes_the_connection() -> None:
    async with serving(keep_alive_s=0) as connect:
        reader, writer = await connect()
        await write(writer, UNENDED)
        assert await said(reader) == (200, b"ok")
        assert await ended(reader) == b""


async def test_a_refused_body_that_trickles_in_closes_the_connection() -> None:
    async with serving(request_timeout_s=0.1) as connect:
        reader, writer = await connect()
        await write(writer, UNENDED)
        assert await said(reader) == (200, b"ok")
        await ended_while_trickling(reader, writer)


async def ended_while_trickling(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bytes:
    """What comes until the other side closes, although more is sent all the time."""

    async def trickle() -> None:
        while True:
            await write(writer, b"x")
            await asyncio.sleep(0.01)

    trickling = asyncio.create_task(trickle())
    try:
        return await ended(reader)
    finally:
        trickling.cancel()


@pytest.mark.parametrize("trickles", [False, True])
async def test_a_body_that_does_not_end_is_refused_in_time(trickles: bool) -> None:
    limits = BodyLimits(1_000_000, "", 1000, 0.1)

    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await read_body({}, receive, limits)
        except RequestTimeout as problem:
            await reply_problem(send, problem, [])

    async with serving(read, request_timeout_s=limits.timeout_s) as connect:
        reader, writer = await connect()
        await write(writer, UNENDED)
        said = await ended_while_trickling(reader, writer) if trickles else await ended(reader)
        assert said.startswith(b"HTTP/1.1 408 ")


async def test_new_clients_get_through_when_silent_ones_hold_all_connections() -> None:
    async with serving(most=5) as connect:
        silent = [await connect() for _ in range(30)]
        for _ in range(3):
            reader, writer = await connect()
            await write(writer, GET + b"\r\n")
            assert await said(reader) == (200, b"ok")
        for reader, _ in silent[:20]:
            assert await ended(reader) == b""


async def test_a_request_under_way_is_not_closed_for_another() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await go_on.wait()
        await answer(scope, receive, send)

    async with serving(slow, request_timeout_s=0.05, most=2) as connect:
        reader, writer = await connect()
        await write(writer, GET + b"\r\n")
        await asked.wait()
        for _ in range(5):
            await connect()
        go_on.set()
        assert await said(reader) == (200, b"ok")


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {"now": (1024, 4096)}

    def get(_which: int) -> tuple[int, int]:
        return limits["now"]

    def put(_which: int, new: tuple[int, int]) -> None:
        limits["now"] = new

    monkeypatch.setattr(resource, "getrlimit", get)
    monkeypatch.setattr(resource, "setrlimit", put)
    assert (raise_open_files(), limits["now"]) == (4096, (4096, 4096))
    assert raise_open_files() == 4096
    limits["now"] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert raise_open_files() == 65_536
    limits["now"] = (1024, resource.RLIM_INFINITY)
    assert raise_open_files() == 65_536


HEADS = (
    GET + b"\r\n",
    b"POST /v1 HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\n\r\n",
    b"GET /\xff%ff HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(HEADS), st.integers(0, 90), st.binary(max_size=6), st.integers(0, 6)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_no_bytes_upset_a_connection(changes: list[tuple[bytes, int, bytes, int]]) -> None:
    """Whatever comes is answered or closed, without an exception, and the next connection is
    served.
    """
    sent = b"".join(
        head[:at] + inserted + head[at + removed :] for head, at, inserted, removed in changes
    )

    async def go() -> None:
        upset: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: upset.append(context)
        )
        async with serving(echo) as connect:
            reader, writer = await connect()
            await write(writer, sent)
            writer.write_eof()
            await ended(reader)
            reader, writer = await connect()
            await write(writer, GET + b"\r\n")
            assert await said(reader) == (200, b"0")
        assert upset == []

    asyncio.run(go())
