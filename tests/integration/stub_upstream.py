"""An OpenAI-compatible upstream that does what a test tells it: a real aiohttp server on a port of
its own, in this process.

It answers like vLLM (token ids, log-probabilities, versions) or like others (none of these), fails
in every way that is asked of it, and can withhold the rest of a stream until the test says that the
client has what was sent so far.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from tests.integration.stub_answers import PROMPT_IDS, Api, Chat, Completions, Script
from tests.integration.stub_items import CountTokens, Embeddings, Messages, Responses

__all__ = ["PROMPT_IDS", "Script", "Stub", "running_stub"]

APIS: dict[str, Api] = {
    "/v1/chat/completions": Chat(),
    "/v1/completions": Completions(),
    "/v1/messages": Messages(),
    "/v1/messages/count_tokens": CountTokens(),
    "/v1/responses": Responses(),
    "/v1/embeddings": Embeddings(),
}


class Stub:
    """The running upstream: what to do, and what it was asked."""

    def __init__(self) -> None:
        self.script = Script()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.chunks_sent = 0
        self.asked = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.url = ""
        self._gate = asyncio.Semaphore(0)

    def reset(self, **script: Any) -> Script:
        """A new script; forgets what was asked."""
        self.script = Script(**script)
        self.requests.clear()
        self.headers.clear()
        self.chunks_sent = 0
        self.asked.clear()
        self.cancelled.clear()
        self._gate = asyncio.Semaphore(0)
        return self.script

    def release(self, chunks: int = 1) -> None:
        """Let that many more chunks out."""
        for _ in range(chunks):
            self._gate.release()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Any of the APIs."""
        script, api = self.script, APIS[request.path]
        body: dict[str, Any] = await request.json()
        if script.words_of is not None:
            script = replace(script, words=script.words_of(body))
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.asked.set()
        if script.hang:
            try:
                await asyncio.sleep(3600)
            finally:
                self.cancelled.set()
        if script.waits:
            try:
                await self._gate.acquire()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if script.status != 200:
            error = {
                "message": script.error,
                "type": "BadRequestError",
                "param": None,
                "code": script.status,
            }
            return web.json_response({"error": error}, status=script.status)
        if body.get("stream") and not isinstance(api, Embeddings):
            return await self._stream(request, body, script, api)
        return web.json_response(
            api.whole(body, request.headers, script), headers=_version_headers(script, last=True)
        )

    async def _stream(
        self, request: web.Request, body: dict[str, Any], script: Script, api: Api
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream", **_version_headers(script, last=False)}
        )
        await response.prepare(request)
        try:
            for number, event in enumerate(api.events(body, request.headers, script)):
                if number > 0 and script.gates:
                    await self._gate.acquire()
                if script.break_after is not None and number > script.break_after:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                if script.error_after is not None and number > script.error_after:
                    await response.write(api.failure)
                    break
                await response.write(event)
                self.chunks_sent += 1
        except (asyncio.CancelledError, ConnectionResetError):
            self.cancelled.set()
            raise
        if script.vllm and script.version_last:
            await response.write(f": fulgurite-version {script.version_last}\n\n".encode())
        await response.write(api.done)
        return response


def _version_headers(script: Script, *, last: bool) -> dict[str, str]:
    if not script.vllm or script.version is None:
        return {}
    headers = {"x-fulgurite-version": script.version}
    if last and script.version_last is not None:
        headers["x-fulgurite-version-last"] = script.version_last
    return headers


@web.middleware
async def _refuses_nonsense(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What makes no sense is the client's mistake, as for vLLM."""
    body: Any = await request.json() if request.method == "POST" else {}
    number = body.get("n") or 1
    if not isinstance(number, int) or not 1 <= number <= 16:
        return web.json_response(
            {
                "error": {
                    "message": "n is out of range",
                    "type": "BadRequestError",
                    "param": "n",
                    "code": 400,
                }
            },
            status=400,
        )
    try:
        return await handler(request)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        return web.json_response(
            {
                "error": {
                    "message": repr(error),
                    "type": "BadRequestError",
                    "param": None,
                    "code": 400,
                }
            },
            status=400,
        )


@asynccontextmanager
async def running_stub() -> AsyncGenerator[Stub]:
    """A stub on a free port of 127.0.0.1."""
    stub = Stub()
    app = web.Application(
        client_max_size=64 * 1024 * 1024,
        handler_args={"handler_cancellation": True},
        middlewares=[_refuses_nonsense],
    )
    for path in APIS:
        app.router.add_post(path, stub.answer)
    app.router.add_get("/health", _healthy)
    app.router.add_get("/v1/models", _healthy)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield stub
    finally:
        await runner.cleanup()


async def _healthy(_request: web.Request) -> web.Response:
    return web.json_response({})
