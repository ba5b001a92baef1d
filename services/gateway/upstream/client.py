"""The upstream: vLLM, or any OpenAI-compatible server. aiohttp, one session per process.

Raises the `UpstreamFailed` branch of the gateway's errors. Leaving the context of `open` early
closes the connection, which cancels the generation. Never retries: a retry would be a call of its
own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from multidict import CIMultiDict, istr

from services.gateway.errors import (
    NotReady,
    UpstreamBroken,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from services.gateway.settings import GatewaySettings
from services.gateway.upstream.route import Route

VERSION_HEADER = "x-fulgurite-version"
VERSION_LAST_HEADER = "x-fulgurite-version-last"
_EXPECTS = istr("x-fulgurite-expects")
_REFUSED = "x-fulgurite-refused"

_KEEP_ALIVE_S = 4.0
"""vLLM closes idle connections after 5 s: ours must go first, or a request meets a closing one."""

_REQUEST_ID = istr("X-Request-Id")
_HEADERS = CIMultiDict(
    {
        istr("Content-Type"): "application/json",
        istr("Accept"): "*/*",
        istr("Accept-Encoding"): "identity",
        istr("User-Agent"): "fulgurite-gateway",
    }
)
"""All headers, so that aiohttp adds none. Upstreams are near: compressing costs more than it saves.
"""

_ERROR_BYTES = 64 * 1024
_OK = 200


class UpstreamReply:
    """An answer of the upstream whose status was 200."""

    def __init__(self, response: aiohttp.ClientResponse, backend: str, limit: int) -> None:
        self._response = response
        self._backend = backend
        self._limit = self._left = limit

    def close(self) -> None:
        """Keep the connection if the answer was read to its end. Otherwise close it, so that the
        upstream stops generating.
        """
        self._response.release() if self._response.content.at_eof() else self._response.close()

    def header(self, name: str) -> str | None:
        """A header of the answer; None for one that is no printable ASCII."""
        return _header(self._response, name)

    async def read(self) -> bytes:
        """The complete body. Raises UpstreamBroken, UpstreamTimeout."""
        pieces: list[bytes] = []
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The body as it arrives. Raises UpstreamBroken, UpstreamTimeout."""
        while piece := await self.piece():
            yield piece

    async def piece(self) -> bytes:
        """What has arrived; empty at the end. Raises UpstreamBroken, UpstreamTimeout."""
        try:
            piece = await self._response.content.readany()
        except TimeoutError as error:
            raise _timeout(self._backend) from error
        except aiohttp.ClientError as error:
            raise _broken(self._backend, error) from error
        self._left -= len(piece)
        if self._left < 0:
            raise UpstreamBroken(
                f"The answer of the model server {self._backend!r} is over the limit of "
                f"{self._limit} bytes "
                "(FULGURITE_MAX_ANSWER_BYTES). Ask for less, or raise the limit."
            )
        return piece


class UpstreamClient:
    """Sends requests on. Needs a running event loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=settings.connect_timeout_s,
            sock_read=settings.upstream_timeout_s,
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            # An answer that is compressed although asked not to be is refused: inflated it has no
            # limit.
            auto_decompress=False,
        )
        self._limit = settings.max_answer_bytes

    @asynccontextmanager
    async def open(
        self,
        route: Route,
        path: str,
        body: bytes,
        call_id: str,
        traceparent: str | None,
        extra: Mapping[str, str],
    ) -> AsyncGenerator[UpstreamReply]:
        """`post`, and the reply closed in the end."""
        reply = await self.post(route, path, body, call_id, traceparent, extra)
        try:
            yield reply
        finally:
            reply.close()

    async def post(
        self,
        route: Route,
        path: str,
        body: bytes,
        call_id: str,
        traceparent: str | None,
        extra: Mapping[str, str],
    ) -> UpstreamReply:
        """Post a request, with some headers of its own. Raises NotReady, UpstreamRejected,
        UpstreamUnreachable, UpstreamTimeout.
        """
        headers = _HEADERS.copy()
        headers[_REQUEST_ID] = call_id
        headers.update(extra)
        if route.api_key is not None:
            headers["authorization"] = f"Bearer {route.api_key}"
        if traceparent is not None:
            headers["traceparent"] = traceparent
        if route.expects is not None:
            headers[_EXPECTS] = route.expects
        try:
            # A redirect would send the prompt to any address that the model server names.
            response = await self._session.post(
                route.base_url + path, data=body, headers=headers, allow_redirects=False
            )
        except aiohttp.ServerTimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise _unreachable(route.backend, "it does not accept connections") from error
            raise _timeout(route.backend) from error
        except aiohttp.ClientConnectorError as error:
            raise _unreachable(route.backend, error.strerror or "no connection") from error
        except aiohttp.ClientError as error:
            raise _broken(route.backend, error) from error
        reply = UpstreamReply(response, route.backend, self._limit)
        if response.status == _OK and _encoding(response) is None:
            return reply
        try:
            if response.status == _OK:
                raise UpstreamBroken(
                    f"The model server {route.backend!r} sent its answer compressed "
                    f"({_encoding(response)}), though asked not to. "
                    "Turn compression off there, or in the proxy before it."
                )
            if route.expects is not None and _REFUSED in response.headers:
                raise NotReady(route.backend, route.expects)
            raise UpstreamRejected(
                route.backend,
                response.status,
                await _error_body(response),
                reply.header("retry-after"),
            )
        finally:
            reply.close()

    async def reachable(self, route: Route) -> bool:
        """Whether anything answers there, and a vLLM says that it is healthy."""
        path = "/health" if route.kind == "vllm" else "/v1/models"
        try:
            async with self._session.get(
                route.base_url + path, timeout=aiohttp.ClientTimeout(total=2), allow_redirects=False
            ) as response:
                return response.status == _OK or route.kind != "vllm"
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()
        await asyncio.sleep(0)


def _header(response: aiohttp.ClientResponse, name: str) -> str | None:
    value = response.headers.get(name)
    return value if value is not None and value.isascii() and value.isprintable() else None


def _encoding(response: aiohttp.ClientResponse) -> str | None:
    """How the body is compressed; None if it is not."""
    coding = (_header(response, "content-encoding") or "").strip().lower()
    return coding if coding not in ("", "identity") else None


async def _error_body(response: aiohttp.ClientResponse) -> bytes:
    """The beginning of an error's body, decompressed."""
    if 300 <= response.status < 400:
        return (
            b"a redirect, which is not followed: give the model server's final address "
            b"in "
            b"the settings"
        )
    if (coding := _encoding(response)) is not None:
        return b"a body compressed with " + coding.encode()
    try:
        return await response.content.read(_ERROR_BYTES)
    except (aiohttp.ClientError, TimeoutError):
        return b""


def _timeout(backend: str) -> UpstreamTimeout:
    return UpstreamTimeout(
        f"The model server {backend!r} was silent for too long (FULGURITE_UPSTREAM_TIMEOUT_S). "
        "Try again."
    )


def _unreachable(backend: str, why: str) -> UpstreamUnreachable:
    return UpstreamUnreachable(
        f"The model server {backend!r} cannot be reached ({why}). Is it running, and is its "
        "address in the settings right?"
    )


def _broken(backend: str, error: Exception) -> UpstreamBroken:
    return UpstreamBroken(
        f"The answer of the model server {backend!r} broke off ({type(error).__name__}). Try again."
    )
