"""An OpenAI-compatible upstream that does what a test tells it: a real aiohttp server on a port of its own, in this process.

It answers like vLLM (token ids, log-probabilities, versions) or like others (none of these), fails in every way that is asked
of it, and can withhold the rest of a stream until the test says that the client has what was sent so far.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

PROMPT_IDS = [1, 2, 3]


@dataclass
class Script:
    """How the next answers look."""

    words: list[str] = field(default_factory=lambda: ["Hello", " there", "!"])
    vllm: bool = True
    finish_reason: str = "stop"
    tool_arguments: str | None = None
    """If set, the answer is one tool call with these arguments."""
    status: int = 200
    error: str = "it broke"
    hang: bool = False
    """Never answer."""
    gates: bool = False
    """Before each chunk of a stream but the first, wait for `Stub.release`."""
    break_after: int | None = None
    """Cut the connection after that many chunks with content."""
    error_after: int | None = None
    """Send an error event after that many chunks with content."""
    version: str | None = "policy@1.7"
    version_last: str | None = "policy@1.8"


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

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`."""
        script = self.script
        body: dict[str, Any] = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.asked.set()
        if script.hang:
            try:
                await asyncio.sleep(3600)
            finally:
                self.cancelled.set()
        if script.status != 200:
            error = {"message": script.error, "type": "BadRequestError", "param": None, "code": script.status}
            return web.json_response({"error": error}, status=script.status)
        if body.get("stream"):
            return await self._stream(request, body, script)
        return web.json_response(_whole(body, script), headers=_version_headers(script, last=True))

    async def _stream(self, request: web.Request, body: dict[str, Any], script: Script) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **_version_headers(script, last=False)})
        await response.prepare(request)
        chunks = _chunks(body, script)
        try:
            for number, chunk in enumerate(chunks):
                if number > 0 and script.gates:
                    await self._gate.acquire()
                if script.break_after is not None and number > script.break_after:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                if script.error_after is not None and number > script.error_after:
                    await response.write(b'data: {"error": {"message": "engine died", "type": "InternalServerError", "code": 500}}\n\n')
                    break
                await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.chunks_sent += 1
        except (asyncio.CancelledError, ConnectionResetError):
            self.cancelled.set()
            raise
        if script.vllm and script.version_last:
            await response.write(f": fulgurite-version {script.version_last}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


def _version_headers(script: Script, *, last: bool) -> dict[str, str]:
    if not script.vllm or script.version is None:
        return {}
    headers = {"x-fulgurite-version": script.version}
    if last and script.version_last is not None:
        headers["x-fulgurite-version-last"] = script.version_last
    return headers


def _logprobs(words: list[str], start: int) -> dict[str, Any]:
    content: list[dict[str, Any]] = [
        {"token": w, "logprob": -0.5 * (start + i + 1), "bytes": None, "top_logprobs": []} for i, w in enumerate(words)
    ]
    return {"content": content}


def _message(script: Script) -> dict[str, Any]:
    if script.tool_arguments is None:
        return {"role": "assistant", "content": "".join(script.words)}
    function = {"name": "calc", "arguments": script.tool_arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}


def _head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-upstream", "object": kind, "created": 1_700_000_000, "model": body["model"]}


def _usage(script: Script) -> dict[str, int]:
    spoken = len(script.words)
    return {"prompt_tokens": len(PROMPT_IDS), "completion_tokens": spoken, "total_tokens": len(PROMPT_IDS) + spoken}


def _whole(body: dict[str, Any], script: Script) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    for index in range(body.get("n") or 1):
        choice: dict[str, Any] = {"index": index, "message": _message(script), "finish_reason": script.finish_reason, "logprobs": None}
        if script.vllm:
            choice["stop_reason"] = None
            choice["logprobs"] = _logprobs(script.words, 0) if body.get("logprobs") else None
            choice["token_ids"] = [10 + i for i in range(len(script.words))] if body.get("return_token_ids") else None
        choices.append(choice)
    reply = {**_head(body, "chat.completion"), "choices": choices, "usage": _usage(script)}
    if script.vllm:
        reply["prompt_token_ids"] = PROMPT_IDS if body.get("return_token_ids") else None
    return reply


def _chunks(body: dict[str, Any], script: Script) -> list[dict[str, Any]]:
    head = _head(body, "chat.completion.chunk")
    asked = body.get("return_token_ids")
    count = body.get("n") or 1
    chunks: list[dict[str, Any]] = []
    for index in range(count):
        first: dict[str, Any] = {**head, "choices": [_part(index, {"role": "assistant", "content": ""})]}
        if script.vllm and asked:
            first["prompt_token_ids"] = PROMPT_IDS
        chunks.append(first)
    for number, word in enumerate(script.words):
        for index in range(count):
            # Choices end at different times: the last word of choice 0 comes one round before that of the others.
            last = number == len(script.words) - 1
            part = _part(index, {"content": word}, script.finish_reason if last else None)
            if script.vllm:
                part["logprobs"] = _logprobs([word], number) if body.get("logprobs") else None
                part["token_ids"] = [10 + number] if asked else None
            chunks.append({**head, "choices": [part]})
    options: dict[str, Any] = body.get("stream_options") or {}
    if options.get("include_usage"):
        chunks.append({**head, "choices": [], "usage": _usage(script)})
    return chunks


def _part(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


@asynccontextmanager
async def running_stub() -> AsyncGenerator[Stub]:
    """A stub on a free port of 127.0.0.1."""
    stub = Stub()
    app = web.Application(client_max_size=64 * 1024 * 1024, handler_args={"handler_cancellation": True})
    app.router.add_post("/v1/chat/completions", stub.chat)
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
