"""`/v1/chat/completions` (also under `/rollouts/{rollout}`) and `/v1/models`: what an unmodified agent talks to.

Every call ends as one event of `llm.calls`, whatever became of it. A completed answer's completion marker (the reply; in a stream
everything from the finish reason on) leaves only after Kafka acknowledged that event.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import msgspec
from starlette.types import Receive, Scope, Send

from fulgurite.events import LlmCall
from fulgurite.ids import completion_of
from fulgurite.kinds import CallOutcome
from services import logs
from services.gateway import wire
from services.gateway.call import Call, Draft, reply_headers
from services.gateway.capture import Capture
from services.gateway.chat_request import ChatRequest, Wants, parse_chat, sampling_of, upstream_body
from services.gateway.desk import Desk
from services.gateway.identity import AGENT_HEADER, ROLLOUT_HEADER, Caller, Identified, Named, bearer
from services.gateway.keys import CALL
from services.gateway.problems import ClientGone, ExpiredKey, Forbidden, GatewayError, NotFound, Unavailable, UpstreamBroken
from services.gateway.settings import Route
from services.gateway.streams import EventSplitter, StreamRelay
from services.gateway.vllm_client import VERSION_HEADER, VERSION_LAST_HEADER, UpstreamReply

log = logs.get(__name__)

_AS_IT_IS = Wants(logprobs=True, token_ids=True, usage=True)
"""For upstreams that were asked for nothing extra: nothing is taken out."""


class ChatCompletions:
    """A raw ASGI endpoint: FastAPI's own request handling would cost as much again as everything done here."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call, from its first byte to the last."""
        draft = Draft(now_ms(), wire.header(scope, b"traceparent"), self._desk.sampling)
        try:
            call = await self._admit(draft, scope, receive)
        except ClientGone:
            return
        except GatewayError as problem:
            await self._refuse(draft, problem, send)
            return
        self._desk.recorder.begin(call.call_id, call.who)
        try:
            if call.chat.stream:
                await self._stream(call, receive, send)
            else:
                await self._whole(call, receive, send)
        finally:
            self._desk.recorder.end(call.call_id)

    async def _admit(self, draft: Draft, scope: Scope, receive: Receive) -> Call:
        """Everything that can be said against a call before it reaches an upstream. Raises GatewayError, ClientGone."""
        desk, now = self._desk, draft.started_at
        authorization = wire.header(scope, b"authorization")
        named = _named(scope)
        try:
            caller = desk.doorkeeper.admit(authorization, now)
        except ExpiredKey as problem:
            # Genuine, only late: it is still known whose call it was.
            claims = problem.claims
            await self._identify(draft, Caller(claims.rollout, admin=False, claims=claims), Named(agent=named.agent), "")
            raise
        draft.secret = bearer(authorization)
        if caller.claims is not None and CALL not in caller.claims.scopes:
            raise Forbidden("This key is for rewards only: the agent's calls need the rollout's `api_key`, not its `reward_key`.")
        try:
            raw = await wire.read_body(scope, receive, desk.settings.max_body_bytes)
            draft.request = raw.decode("utf-8", "replace")
            chat = draft.chat = parse_chat(raw)
        except GatewayError:
            await self._identify(draft, caller, named, "")
            raise
        draft.sampling = sampling_of(chat.body, desk.sampling)
        who, call_id = await self._identify(draft, caller, msgspec.structs.replace(named, session=chat.session), chat.alias)
        route = self._route(chat)
        desk.recorder.check()
        return Call(draft, who, call_id, chat, route)

    async def _identify(self, draft: Draft, caller: Caller, named: Named, alias: str) -> tuple[Identified, str]:
        who = await self._desk.identifier.identify(caller, named, alias, draft.started_at)
        draft.call = who, completion_of(who.rollout_id, who.attempt, os.urandom(8))
        return draft.call

    def _route(self, chat: ChatRequest) -> Route:
        route = self._desk.routes.get(chat.alias)
        if route is None:
            known = ", ".join(sorted(self._desk.routes))
            raise NotFound(f"Unknown model {chat.alias!r}. This gateway serves: {known}.", param="model", code="model_not_found")
        return route

    async def _refuse(self, draft: Draft, problem: GatewayError, send: Send) -> None:
        """Answer with the error; record it, if it is known whose call it was."""
        if draft.call is None:
            await wire.reply_problem(send, problem, [])
            return
        event = draft.refusal(*draft.call, problem, now_ms())
        if self._desk.recorder.problem() is None:
            await self._record_quietly(event)
        else:
            self._desk.recorder.record_call_soon(event)
        await wire.reply_problem(send, problem, reply_headers(draft.call[0]))

    async def _whole(self, call: Call, receive: Receive, send: Send) -> None:
        """One upstream answer, one event, one reply, in this order."""
        capture = self._capture(call)
        try:
            async with wire.ClientWatch(receive):
                async with self._open(call) as upstream:
                    capture.version_first = upstream.header(VERSION_HEADER)
                    capture.version_last = upstream.header(VERSION_LAST_HEADER)
                    raw = await upstream.read()
                call.first_token_at = now_ms()
                body = capture.take_reply(_object(raw, call.route.backend))
        except ClientGone:
            await self._record_quietly(self._event(call, capture, outcome=CallOutcome.client_disconnected))
            return
        except GatewayError as problem:
            await self._record_quietly(self._event(call, capture, problem))
            await wire.reply_problem(send, problem, reply_headers(call.who))
            return
        except asyncio.CancelledError:
            self._abandon(call, capture)
            raise
        withheld = await self._record_answer(call, capture)
        if withheld is None:
            await wire.reply(send, 200, body, reply_headers(call.who, capture.version_first))
        else:
            await wire.reply_problem(send, withheld, reply_headers(call.who))

    async def _stream(self, call: Call, receive: Receive, send: Send) -> None:
        """Events pass as they come; the completion marker waits for the log."""
        capture = self._capture(call)
        relay = StreamRelay(capture)
        begun = False
        try:
            async with wire.ClientWatch(receive), self._open(call) as upstream:
                capture.version_first = upstream.header(VERSION_HEADER)
                begun = True
                headers = [wire.EVENT_STREAM, (b"cache-control", b"no-cache"), *reply_headers(call.who, capture.version_first)]
                await wire.start(send, 200, headers)
                await self._relay(call, upstream, relay, send)
            if capture.error is not None or not capture.finished():
                raise UpstreamBroken(capture.error or f"The stream of the model server {call.route.backend!r} ended before its answer did.")
        except ClientGone:
            await self._record_quietly(self._event(call, capture, outcome=CallOutcome.client_disconnected))
        except GatewayError as problem:
            await self._record_quietly(self._event(call, capture, problem))
            if begun:
                await wire.piece(send, relay.error or _sse(problem.body()), last=True)
            else:
                await wire.reply_problem(send, problem, reply_headers(call.who))
        except asyncio.CancelledError:
            self._abandon(call, capture)
            raise
        else:
            withheld = await self._record_answer(call, capture)
            await wire.piece(send, b"".join(relay.held) if withheld is None else _sse(withheld.body()), last=True)

    async def _relay(self, call: Call, upstream: UpstreamReply, relay: StreamRelay, send: Send) -> None:
        splitter = EventSplitter()
        async for data in upstream.pieces():
            if call.first_token_at is None:
                call.first_token_at = now_ms()
            for event in splitter.feed(data):
                passed = relay.take(event)
                if passed is not None:
                    await wire.piece(send, passed)

    async def _record_answer(self, call: Call, capture: Capture) -> Unavailable | None:
        """Return once the answer is in the log; the problem if it cannot be, and must be withheld."""
        metrics, first = self._desk.metrics, call.first_token_at or call.started_at
        metrics.upstream_seconds.observe((now_ms() - call.started_at) / 1000)
        metrics.first_token_seconds.observe((first - call.started_at) / 1000)
        try:
            await self._desk.recorder.record_call(self._event(call, capture))
        except Unavailable as problem:
            metrics.withheld.inc()
            return problem
        return None

    async def _record_quietly(self, event: LlmCall) -> None:
        """For calls without an answer: the log being down as well changes nothing for the client."""
        try:
            await self._desk.recorder.record_call(event)
        except Unavailable:
            log.warning("a call without an answer is not in the log", call_id=event.call_id, outcome=event.outcome.value)

    def _abandon(self, call: Call, capture: Capture) -> None:
        """The gateway itself is being stopped, and not given the time to finish."""
        self._desk.recorder.record_call_soon(self._event(call, capture, outcome=CallOutcome.client_disconnected))

    def _event(
        self, call: Call, capture: Capture, problem: GatewayError | None = None, outcome: CallOutcome = CallOutcome.success
    ) -> LlmCall:
        return call.event(capture, self._desk.settings.logprobs_mode, now_ms(), problem, outcome)

    def _capture(self, call: Call) -> Capture:
        ours = call.route.kind == "vllm"
        return Capture(call.call_id, call.route.alias if ours else None, call.chat.wants if ours else _AS_IT_IS)

    def _open(self, call: Call) -> AbstractAsyncContextManager[UpstreamReply]:
        return self._desk.upstream.open(call.route, upstream_body(call.chat, call.route), call.call_id, call.traceparent)


class Models:
    """`GET /v1/models`: the aliases."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """OpenAI's list of models."""
        try:
            self._desk.doorkeeper.admit(wire.header(scope, b"authorization"), now_ms())
        except GatewayError as problem:
            await wire.reply_problem(send, problem, [])
            return
        data = [
            {"id": route.alias, "object": "model", "created": 0, "owned_by": "fulgurite", "policy": route.policy}
            for route in self._desk.routes.values()
        ]
        await wire.reply(send, 200, msgspec.json.encode({"object": "list", "data": data}), [])


def _named(scope: Scope) -> Named:
    return Named(
        path=cast("dict[str, str]", scope.get("path_params", {})).get("rollout"),
        header=wire.header(scope, ROLLOUT_HEADER.encode()),
        agent=wire.header(scope, AGENT_HEADER.encode()),
    )


def _object(raw: bytes, backend: str) -> dict[str, Any]:
    try:
        reply: Any = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise UpstreamBroken(f"The answer of the model server {backend!r} is not JSON.") from error
    if not isinstance(reply, dict) or not isinstance(cast("dict[str, Any]", reply).get("choices"), list):
        raise UpstreamBroken(f"The answer of the model server {backend!r} is not a chat completion.")
    return cast("dict[str, Any]", reply)


def _sse(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000
