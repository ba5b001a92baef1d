"""Lets an expert answer in the place of the model: `fulgurite run --expert expert.py:answer`.

The episodes of a warm start come from agents that nobody changed, too. Between them and the gateway
stands a server that asks the expert, a function of the task and the messages so far, what the model
shall answer. The server puts that into the chat (`fulgurite_dictate`), and the model answers so, in
its own tokens. Requests of other APIs, and those that the expert leaves to the model, pass as they
are. The expert runs in processes of its own, as reward functions do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

import aiohttp
from aiohttp import web

from services.common.runtime.gateway_fields import DICTATE
from services.rewards.errors import ReturnedNoJson, RewardFailed
from services.rewards.sandbox import Limits, Sandbox
from services.runner.errors import ExpertFailed
from services.runner.gateway_client import Grant
from services.runner.options import Task

_HOST = "127.0.0.1"
_CHATS = "chat/completions"
_LARGEST_BODY = 64 * 2**20
_MOST_PROCESSES = 8
_SHUTDOWN_S = 1.0
"""For requests that still run at the end, whose agents have ended: a call may take minutes."""
_OF_CONNECTIONS = ("host", "content-length", "transfer-encoding", "connection")


class _Rollout(NamedTuple):
    task: Task
    gateway: str


class Expert:
    """The server; use it as an async context manager."""

    def __init__(
        self,
        reference: str,
        on_failure: Callable[[str], None],
        *,
        concurrency: int,
        timeout_s: float,
    ) -> None:
        """`reference`: FILE.py:FUNCTION, which can be loaded. `on_failure` is told why the expert
        failed. It answers `concurrency` calls at once, 8 at most, each within `timeout_s` seconds.
        """
        limits = Limits(
            processes=min(concurrency, _MOST_PROCESSES), timeout_s=timeout_s, memory_mb=0
        )
        self._sandbox = Sandbox(reference, "expert", limits)
        self._on_failure = on_failure
        self._rollouts: dict[str, _Rollout] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        )
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.router.add_route("*", "/{rollout}/v1/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        await self._runner.setup()
        site = web.TCPSite(self._runner, _HOST, 0)
        await site.start()
        self._port: int = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._runner.cleanup()
            await self._session.close()
        finally:
            self._sandbox.close()

    def base_url(self, grant: Grant, task: Task) -> str:
        """For OPENAI_BASE_URL of the rollout's agent."""
        self._rollouts[grant.rollout_id] = _Rollout(task, grant.base_url)
        return f"http://{_HOST}:{self._port}/{grant.rollout_id}/v1"

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        rollout = self._rollouts.get(request.match_info["rollout"])
        if rollout is None:
            raise web.HTTPNotFound
        body = await request.read()
        path = request.match_info["path"]
        if request.method == "POST" and path == _CHATS:
            try:
                body = await self._dictated(body, rollout.task)
            except ExpertFailed as failure:
                self._on_failure(str(failure))
                return _refusal(str(failure))
        url = f"{rollout.gateway}/{path}"
        async with self._session.request(
            request.method,
            url,
            params=request.query,
            data=body,
            headers=_passed_on(request.headers, "content-encoding"),
            allow_redirects=False,
        ) as reply:
            response = web.StreamResponse(status=reply.status, headers=_passed_on(reply.headers))
            await response.prepare(request)
            async for piece in reply.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    async def _dictated(self, raw: bytes, task: Task) -> bytes:
        """The request with the expert's answer. Raises ExpertFailed."""
        try:
            body = json.loads(raw)
            messages = body["messages"]
        except (ValueError, TypeError, KeyError):
            # The gateway says what is wrong with it.
            return raw
        try:
            given = await self._sandbox.call(task, messages)
        except ReturnedNoJson as error:
            raise _no_answer(str(error)) from error
        except RewardFailed as error:
            raise ExpertFailed(f"the expert failed: {error}") from error
        if given is None:
            return raw
        return json.dumps({**body, DICTATE: message_of(given)}).encode()


def message_of(given: object) -> dict[str, Any]:
    """What an expert returned, as a message of the assistant: a text, or a message whose tool calls
    may be `{"name": ..., "arguments": {...}}`. Raises ExpertFailed.
    """
    if isinstance(given, str):
        return {"role": "assistant", "content": given}
    if not isinstance(given, dict):
        raise _no_answer(f"{given!r} ({type(given).__name__})")
    message = cast("dict[str, Any]", given)
    turn: dict[str, Any] = {"role": "assistant", "content": message.get("content")}
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    if calls:
        turn["tool_calls"] = [_call(call, place) for place, call in enumerate(calls)]
    return turn


def _no_answer(returned: str) -> ExpertFailed:
    return ExpertFailed(
        f"the expert returned {returned}: expected a text, a message with `content` or "
        "`tool_calls`, or None to let the model answer"
    )


def _call(call: Mapping[str, Any], place: int) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    return {
        "id": call.get("id", f"call_{place}"),
        "type": "function",
        "function": {
            "name": function.get("name"),
            "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
        },
    }


def _passed_on(headers: Mapping[str, str], *without: str) -> list[tuple[str, str]]:
    left_out = {*_OF_CONNECTIONS, *without}
    return [(name, value) for name, value in headers.items() if name.lower() not in left_out]


def _refusal(message: str) -> web.Response:
    """In the shape of OpenAI's errors, with a status that no client tries again."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": "expert"}
    return web.json_response({"error": error}, status=400)
