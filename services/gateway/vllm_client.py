"""The upstream: vLLM, spoken to directly (`engine_http`), or any OpenAI-compatible server, through aiohttp.

Raises the `UpstreamFailed` branch of `problems`; leaving the context of `open` early closes the connection, which cancels
the generation. Never retries: a retry would be a call of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import aiohttp
from multidict import CIMultiDict

from services.gateway.engine_http import BrokenOff, Connection, EngineClient
from services.gateway.problems import NotReady, UpstreamBroken, UpstreamFailed, UpstreamRejected, UpstreamTimeout, UpstreamUnreachable
from services.gateway.settings import GatewaySettings, Route

VERSION_HEADER = "x-fulgurite-version"
VERSION_LAST_HEADER = "x-fulgurite-version-last"
_EXPECTS = "x-fulgurite-expects"
_REFUSED = "x-fulgurite-refused"

_KEEP_ALIVE_S = 4.0
"""vLLM closes idle connections after 5 s: ours must go first, or a request meets a closing one."""

_HEADERS = {"Content-Type": "application/json", "Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "fulgurite-gateway"}
"""Whole, so that aiohttp adds nothing. Upstreams are near: what they would gain by compressing is lost by it."""

_ERROR_BYTES = 64 * 1024
_OK = 200


class UpstreamReply(Protocol):
    """An answer of the upstream, as it arrives."""

    @property
    def status(self) -> int:
        """Of HTTP; what leaves `post` has 200."""
        ...

    def header(self, name: str) -> str | None:
        """A header of the answer, by its lower-case name."""
        ...

    async def read(self) -> bytes:
        """The whole body. Raises UpstreamBroken, UpstreamTimeout."""
        ...

    def pieces(self) -> AsyncGenerator[bytes]:
        """The body as it arrives. Raises UpstreamBroken, UpstreamTimeout."""
        ...

    def close(self) -> None:
        """Nothing left to read: the connection is kept. Otherwise it is closed, and the upstream stops generating."""
        ...


class EngineReply:
    """Of an engine that is spoken to directly."""

    def __init__(self, connection: Connection, backend: str) -> None:
        self._connection = connection
        self._backend = backend
        self.status = connection.status

    def close(self) -> None:
        """See UpstreamReply."""
        self._connection.release()

    def header(self, name: str) -> str | None:
        """See UpstreamReply."""
        return self._connection.headers.get(name)

    async def read(self) -> bytes:
        """See UpstreamReply."""
        try:
            return await self._connection.rest()
        except TimeoutError as error:
            raise _timeout(self._backend) from error
        except BrokenOff as error:
            raise _broken(self._backend, error) from error

    async def pieces(self) -> AsyncGenerator[bytes]:
        """See UpstreamReply."""
        try:
            while data := await self._connection.piece():
                yield data
        except TimeoutError as error:
            raise _timeout(self._backend) from error
        except BrokenOff as error:
            raise _broken(self._backend, error) from error


class SessionReply:
    """Of any other server."""

    def __init__(self, response: aiohttp.ClientResponse, backend: str) -> None:
        self._response = response
        self._backend = backend
        self.status = response.status

    def close(self) -> None:
        """See UpstreamReply."""
        self._response.release() if self._response.content.at_eof() else self._response.close()

    def header(self, name: str) -> str | None:
        """See UpstreamReply."""
        return self._response.headers.get(name)

    async def read(self) -> bytes:
        """See UpstreamReply."""
        try:
            return await self._response.read()
        except TimeoutError as error:
            raise _timeout(self._backend) from error
        except aiohttp.ClientError as error:
            raise _broken(self._backend, error) from error

    async def pieces(self) -> AsyncGenerator[bytes]:
        """See UpstreamReply."""
        content = self._response.content
        try:
            while data := await content.readany():
                yield data
        except TimeoutError as error:
            raise _timeout(self._backend) from error
        except aiohttp.ClientError as error:
            raise _broken(self._backend, error) from error


class UpstreamClient:
    """Sends requests on. Needs a running event loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._engines = EngineClient(settings.connect_timeout_s, settings.upstream_timeout_s, _KEEP_ALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s, sock_read=settings.upstream_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    @asynccontextmanager
    async def open(
        self, route: Route, path: str, body: bytes, call_id: str, traceparent: str | None, extra: Mapping[str, str]
    ) -> AsyncGenerator[UpstreamReply]:
        """`post`, and the reply closed in the end."""
        reply = await self.post(route, path, body, call_id, traceparent, extra)
        try:
            yield reply
        finally:
            reply.close()

    async def post(
        self, route: Route, path: str, body: bytes, call_id: str, traceparent: str | None, extra: Mapping[str, str]
    ) -> UpstreamReply:
        """Post a request, with some headers of its own. Raises NotReady, UpstreamRejected, UpstreamUnreachable, UpstreamTimeout."""
        headers = {**_HEADERS, "X-Request-Id": call_id, **extra}
        if route.api_key is not None:
            headers["authorization"] = f"Bearer {route.api_key}"
        if traceparent is not None:
            headers["traceparent"] = traceparent
        if route.expects is not None:
            headers[_EXPECTS] = route.expects
        ask = self._ask_engine if _is_engine(route) else self._ask_session
        reply = await ask(route, path, body, headers)
        if reply.status == _OK:
            return reply
        try:
            if route.expects is not None and reply.header(_REFUSED) is not None:
                raise NotReady(route.backend, route.expects)
            raise UpstreamRejected(route.backend, reply.status, await _error_body(reply), reply.header("retry-after"))
        finally:
            reply.close()

    async def _ask_engine(self, route: Route, path: str, body: bytes, headers: Mapping[str, str]) -> UpstreamReply:
        try:
            return EngineReply(await self._engines.post(route.base_url, path, body, headers), route.backend)
        except TimeoutError as error:
            raise _timeout(route.backend) from error
        except OSError as error:
            raise _unreachable(route.backend, error.strerror or str(error)) from error
        except BrokenOff as error:
            raise _broken(route.backend, error) from error

    async def _ask_session(self, route: Route, path: str, body: bytes, headers: Mapping[str, str]) -> UpstreamReply:
        try:
            response = await self._session.post(route.base_url + path, data=body, headers=CIMultiDict(headers))
        except aiohttp.ServerTimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise _unreachable(route.backend, "it does not accept connections") from error
            raise _timeout(route.backend) from error
        except aiohttp.ClientConnectorError as error:
            raise _unreachable(route.backend, error.strerror or "no connection") from error
        except aiohttp.ClientError as error:
            raise _broken(route.backend, error) from error
        return SessionReply(response, route.backend)

    async def reachable(self, route: Route) -> bool:
        """Whether anything answers there, and a vLLM says that it is healthy."""
        path = "/health" if route.kind == "vllm" else "/v1/models"
        try:
            async with self._session.get(route.base_url + path, timeout=aiohttp.ClientTimeout(total=2)) as response:
                return response.status == _OK or route.kind != "vllm"
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def close(self) -> None:
        """Close the connections."""
        self._engines.close()
        await self._session.close()
        await asyncio.sleep(0)


def _is_engine(route: Route) -> bool:
    """TLS and passwords in addresses are for the general client."""
    return route.kind == "vllm" and route.base_url.startswith("http://") and "@" not in route.base_url


async def _error_body(reply: UpstreamReply) -> bytes:
    """Its beginning, as far as it came."""
    body = b""
    try:
        async for piece in reply.pieces():
            body += piece
            if len(body) >= _ERROR_BYTES:
                break
    except UpstreamFailed:
        pass
    return body[:_ERROR_BYTES]


def _timeout(backend: str) -> UpstreamTimeout:
    return UpstreamTimeout(f"The model server {backend!r} was silent for too long (FULGURITE_UPSTREAM_TIMEOUT_S). Try again.")


def _unreachable(backend: str, why: str) -> UpstreamUnreachable:
    return UpstreamUnreachable(
        f"The model server {backend!r} cannot be reached ({why}). Is it running, and is its address in the settings right?"
    )


def _broken(backend: str, error: Exception) -> UpstreamBroken:
    return UpstreamBroken(f"The answer of the model server {backend!r} broke off ({type(error).__name__}). Try again.")
