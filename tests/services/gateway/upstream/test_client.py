"""What an upstream may do to HTTP: each is an answer, or one of the problems that the gateway
knows.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from services.gateway.dialects.openai_errors import openai_error_body
from services.gateway.errors import GatewayError, UpstreamBroken, UpstreamRejected
from services.gateway.http.error_responses import error_headers
from services.gateway.settings import GatewaySettings
from services.gateway.upstream.client import VERSION_HEADER, UpstreamClient
from services.gateway.upstream.route import Route

LIMIT = 4096


class RawUpstream:
    """A client, and the bytes that it is answered."""

    def __init__(self, client: UpstreamClient) -> None:
        self.answer = b""
        self.port = 0
        self._client = client

    async def read(self, answer: bytes) -> tuple[bytes, str | None]:
        """Body and version of an answer."""
        self.answer = answer
        route = Route("a", "odd", f"http://127.0.0.1:{self.port}", "vllm", "m", None, None)
        async with self._client.open(route, "/v1/chat/completions", b"{}", "c", None, {}) as reply:
            return await reply.read(), reply.header(VERSION_HEADER)

    async def refused(self, answer: bytes) -> GatewayError:
        """The problem that it is."""
        with pytest.raises(GatewayError) as caught:
            await self.read(answer)
        # Both can be written, whatever they hold.
        assert openai_error_body(caught.value)
        assert all(value.isascii() for value in error_headers(caught.value).values())
        return caught.value

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(self.answer)
        await writer.drain()
        writer.close()


@pytest_asyncio.fixture
async def upstream() -> AsyncGenerator[RawUpstream]:
    client = UpstreamClient(
        GatewaySettings.model_validate(
            {"signing_keys": "k1:0123456789abcdef", "max_answer_bytes": LIMIT}
        )
    )
    made = RawUpstream(client)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    await client.close()
    server.close()
    await server.wait_closed()


def http(body: bytes, status: int = 200, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n%b" % (
        status,
        len(body),
        headers,
        body,
    )


async def test_an_answer_within_the_limit_is_read(upstream: RawUpstream) -> None:
    assert await upstream.read(
        http(b"x" * LIMIT, headers=b"x-fulgurite-version: policy@1.2\r\n")
    ) == (b"x" * LIMIT, "policy@1.2")
    assert (await upstream.read(http(b"x", headers=b"content-encoding: identity\r\n")))[0] == b"x"


async def test_an_answer_over_the_limit_is_broken(upstream: RawUpstream) -> None:
    for answer in (http(b"x" * (LIMIT + 1)), b"HTTP/1.1 200 X\r\n\r\n" + b"x" * 100_000):
        problem = await upstream.refused(answer)
        assert isinstance(problem, UpstreamBroken)
        assert "FULGURITE_MAX_ANSWER_BYTES" in problem.message


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd", b"GZIP"])
async def test_a_compressed_answer_is_refused_and_never_inflated(
    upstream: RawUpstream, coding: bytes
) -> None:
    body = gzip.compress(b"x" * 1_000_000)
    problem = await upstream.refused(http(body, headers=b"content-encoding: %b\r\n" % coding))
    assert isinstance(problem, UpstreamBroken)
    assert f"compressed ({coding.decode().lower()})" in problem.message
    problem = await upstream.refused(http(body, 500, headers=b"content-encoding: %b\r\n" % coding))
    assert isinstance(problem, UpstreamRejected)
    assert "compressed with" in problem.message


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe",
        b"[" * 5000,
        b'{"error": {"message": "\xff"}}',
        b'{"error": "\\ud83c"}',
        b'{"error": {"message": 5}}',
        b"[1]",
        b"5",
        b"",
    ],
)
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 999])
async def test_any_body_of_an_error_is_an_error(
    upstream: RawUpstream, body: bytes, status: int
) -> None:
    problem = await upstream.refused(http(body, status))
    assert isinstance(problem, UpstreamRejected)
    assert f"answered {status}" in problem.message


async def test_headers_that_are_no_text_are_none(upstream: RawUpstream) -> None:
    assert await upstream.read(http(b"x", headers=b"x-fulgurite-version: \xff\r\n")) == (b"x", None)
    problem = await upstream.refused(http(b"slow", 429, headers=b"retry-after: \xff\r\n"))
    assert error_headers(problem) == {}
    problem = await upstream.refused(http(b"slow", 429, headers=b"retry-after: 7\r\n"))
    assert error_headers(problem) == {"retry-after": "7"}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense",
        b"HTTP/1.1 200 X\r\ncontent-length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nx",
        b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 abc X\r\n\r\n",
        b"HTTP/1.1 200 X\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 X\r\n" + b"a: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_broken(upstream: RawUpstream, answer: bytes) -> None:
    assert isinstance(await upstream.refused(answer), UpstreamBroken)
