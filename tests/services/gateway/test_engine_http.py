"""The client for model servers against sockets that say exactly what a test tells them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from services.gateway.engine_http import BrokenOff, EngineClient

LENGTH = b"HTTP/1.1 200 OK\r\nX-Fulgurite-Version: policy@1.0\r\ncontent-length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Server:
    """Answers each request of a connection with the next of its answers; then it stays, or hangs up."""

    def __init__(self, *answers: bytes, stays: bool) -> None:
        self.answers = list(answers)
        self.stays = stays
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()
        self.connections = 0
        self.gone = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self.answers:
                self.requests.append(await self._request(reader))
                self.asked.set()
                writer.write(self.answers.pop(0))
                await writer.drain()
            if self.stays:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.gone.set()
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        return head + await reader.readexactly(size)


@asynccontextmanager
async def served(
    *answers: bytes, silence_s: float = 5.0, keep_s: float = 5.0, stays: bool = True
) -> AsyncGenerator[tuple[Server, EngineClient]]:
    server = Server(*answers, stays=stays)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    client = EngineClient(1.0, silence_s, keep_s)
    try:
        yield server, client
    finally:
        client.close()
        listening.close()
        await listening.wait_closed()


async def ask(server: Server, client: EngineClient) -> bytes:
    """One request to its end."""
    reply = await client.post(server.url + "/engine/", "/v1/chat", b"{}", {"a": "b"})
    try:
        return await reply.rest()
    finally:
        reply.release()


async def test_a_request_is_whole_and_its_connection_is_used_again() -> None:
    async with served(LENGTH, LENGTH) as (server, client):
        assert [await ask(server, client), await ask(server, client)] == [b"{}", b"{}"]
        host = server.url.removeprefix("http://").encode()
        assert server.requests == [b"POST /engine/v1/chat HTTP/1.1\r\nhost: %b\r\na: b\r\ncontent-length: 2\r\n\r\n{}" % host] * 2
        assert server.connections == 1


async def test_status_and_headers_are_there_before_the_body() -> None:
    answer = b"HTTP/1.1 404 Not Found\r\nX-Fulgurite-Version: 1\r\ncontent-length: 0\r\n\r\n"
    async with served(b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\n" + answer) as (server, client):
        reply = await client.post(server.url, "/", b"", {})
        assert (reply.status, reply.headers) == (404, {"x-fulgurite-version": "1", "content-length": "0"})
        assert await reply.rest() == b""
        reply.release()


async def test_chunks_that_came_together_are_one_piece() -> None:
    async with served(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") as (server, client):
        reply = await client.post(server.url, "/", b"", {})
        assert [await reply.piece(), await reply.piece()] == [b"abcde", b""]
        reply.release()


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async with served(b"HTTP/1.1 200 OK\r\n\r\nall of it", stays=False) as (server, client):
        assert await ask(server, client) == b"all of it"


async def test_a_server_that_closes_is_not_asked_on_the_same_connection() -> None:
    async with served(LENGTH.replace(b"content", b"connection: close\r\ncontent"), LENGTH) as (server, client):
        assert [await ask(server, client), await ask(server, client)] == [b"{}", b"{}"]
        assert server.connections == 2


async def test_a_connection_that_was_idle_for_long_is_closed() -> None:
    async with served(LENGTH, LENGTH, keep_s=0.0) as (server, client):
        await ask(server, client)
        await asyncio.sleep(0.01)
        await ask(server, client)
        assert server.connections == 2


async def test_a_reply_left_early_hangs_up() -> None:
    async with served(CHUNKED + b"3\r\nabc\r\n") as (server, client):
        reply = await client.post(server.url, "/", b"", {})
        assert await reply.piece() == b"abc"
        reply.release()
        await asyncio.wait_for(server.gone.wait(), 5)


async def test_a_call_that_is_cancelled_hangs_up() -> None:
    async with served(b"") as (server, client):
        waiting = asyncio.create_task(client.post(server.url, "/", b"", {}))
        await asyncio.wait_for(server.asked.wait(), 5)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(server.gone.wait(), 5)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", CHUNKED + b"3\r\nabc\r\n", b"SSH-2.0\r\n"])
async def test_what_breaks_off_or_is_no_http_is_told(answer: bytes) -> None:
    async with served(answer, stays=False) as (server, client):
        with pytest.raises(BrokenOff):
            await ask(server, client)


async def test_silence_is_a_timeout_before_and_within_an_answer() -> None:
    async with served(b"", silence_s=0.05) as (server, client):
        with pytest.raises(TimeoutError):
            await ask(server, client)
    async with served(CHUNKED + b"3\r\nabc\r\n", silence_s=0.05) as (server, client):
        reply = await client.post(server.url, "/", b"", {})
        assert await reply.piece() == b"abc"
        with pytest.raises(TimeoutError):
            await reply.piece()


async def test_a_slow_reader_stops_the_server_and_loses_nothing() -> None:
    body = b"x" * 20_000_000
    async with served(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)) as (server, client):
        reply = await client.post(server.url, "/", b"", {})
        await asyncio.sleep(0.2)
        first = await reply.piece()
        assert len(first) < len(body) // 2
        assert first + await reply.rest() == body
        reply.release()


async def test_what_nobody_asked_for_closes_an_idle_connection() -> None:
    async with served(LENGTH, LENGTH) as (server, client):
        reply = await client.post(server.url, "/", b"", {})
        await reply.rest()
        reply.release()
        reply.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        assert await ask(server, client) == b"{}"
        assert server.connections == 2


async def test_nobody_there_is_an_os_error() -> None:
    with pytest.raises(ConnectionRefusedError):
        await EngineClient(1.0, 1.0, 1.0).post("http://127.0.0.1:9", "/", b"", {})


async def test_a_header_of_two_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="line break"):
        await EngineClient(1.0, 1.0, 1.0).post("http://127.0.0.1:9", "/", b"", {"a": "b\r\nc: d"})
