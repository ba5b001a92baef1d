"""The endpoint of every model API: what an unmodified agent talks to, also under
`/rollouts/{rollout}`.

Every call ends as one event of `llm.calls`, whatever becomes of it. What completes an answer (the
reply; in a stream the events that the dialect's capture marks) leaves only after Kafka has
acknowledged that event.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, cast

from starlette.types import Receive, Scope, Send

from fulgurite.enums import CallOutcome
from fulgurite.events import LlmCall
from services.common.runtime import logs
from services.common.runtime.clock import now_ms
from services.gateway.context import GatewayContext
from services.gateway.dialects.dialect import Dialect
from services.gateway.errors import ClientGone, GatewayError, UpstreamBroken
from services.gateway.http import asgi
from services.gateway.http.call_builder import CallBuilder
from services.gateway.http.event_stream import EventStream, KeptAlive
from services.gateway.http.reply_headers import call_headers, rollout_headers
from services.gateway.http.sse_relay import StreamRelay, is_event_stream
from services.gateway.recording.call import Call, Draft
from services.gateway.upstream.client import VERSION_HEADER, VERSION_LAST_HEADER, UpstreamReply

log = logs.get(__name__)

_SERVER_ERROR = 500
_MAX_EXCERPT = 200
"""Characters of an upstream's answer that an error repeats."""
_NO_STREAMS = ("application/json", "application/problem+json", "text/html")


class Endpoint:
    """A raw ASGI endpoint of one API: FastAPI's own request handling would cost as much again as
    all that is done here.
    """

    def __init__(self, context: GatewayContext, dialect: Dialect) -> None:
        self._context = context
        self._dialect = dialect
        self._builder = CallBuilder(context, dialect)
        self._calls = context.call_recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call, from its first byte to the last."""
        headers = asgi.headers_of(scope)
        trace = self._context.tracer.begin(self._dialect.api, asgi.traceparent(headers))
        draft = Draft(self._dialect.api, now_ms(), trace, self._context.sampling)
        try:
            await self._serve(draft, scope, headers, receive, send)
        finally:
            trace.end(draft.event)
            if draft.event is not None and (draft.event.status_code or 0) >= _SERVER_ERROR:
                _log_failed_call(draft.event)

    async def _serve(
        self, draft: Draft, scope: Scope, headers: asgi.Headers, receive: Receive, send: Send
    ) -> None:
        try:
            call = await self._builder.build(draft, scope, headers, receive)
        except ClientGone:
            return
        except GatewayError as problem:
            await self._refuse(draft, problem, send)
            return
        self._context.recorder.begin(call.call_id, call.who)
        try:
            if call.request.stream:
                async with self._event_stream(call, send) as stream:
                    await self._serve_stream(call, receive, stream, send)
            else:
                await self._serve_reply(call, receive, send)
        finally:
            self._context.recorder.end(call.call_id)

    async def _refuse(self, draft: Draft, problem: GatewayError, send: Send) -> None:
        """Record the refusal if it is known whose call it was, and reply with the error."""
        await self._calls.record_refusal(draft, problem)
        headers = [] if draft.owner is None else rollout_headers(draft.owner[0])
        await self._reply_problem(send, problem, headers)

    async def _serve_reply(self, call: Call, receive: Receive, send: Send) -> None:
        """One upstream answer, one event, one reply, in this order."""
        capture = call.capture
        try:
            async with asgi.ClientWatch(receive):
                with _UpstreamErrors(call):
                    async with self._open(call) as upstream:
                        capture.version_first = upstream.header(VERSION_HEADER)
                        capture.version_last = upstream.header(VERSION_LAST_HEADER)
                        raw = await upstream.read()
                    call.answered()
                    call.first_token_at = now_ms()
                    body = self._parse_reply(call, raw)
        except ClientGone:
            await self._calls.record_failure(call, outcome=CallOutcome.client_disconnected)
            return
        except GatewayError as problem:
            await self._calls.record_failure(call, problem)
            await self._reply_problem(send, problem, call_headers(call))
            return
        except asyncio.CancelledError:
            self._calls.record_interrupted(call)
            raise
        withheld = await self._calls.record_answer(call)
        if withheld is None:
            await asgi.reply(send, 200, body, call_headers(call))
            self._context.metrics.added_seconds.observe(call.added_s())
        else:
            await self._reply_problem(send, withheld, call_headers(call))

    def _parse_reply(self, call: Call, raw: bytes) -> bytes:
        """A complete answer → the body for the agent. Raises UpstreamBroken, with the upstream's
        own words where it has any.
        """
        backend, capture = call.route.backend, call.capture
        try:
            reply: Any = capture.decode_reply(raw)
        except ValueError as error:
            excerpt = raw[:_MAX_EXCERPT].decode("utf-8", "replace")
            raise UpstreamBroken(
                f"The model server {backend!r} answered {self._dialect.path} with {excerpt!r}, "
                f"which is not JSON. Try again; {_CHECK_UPSTREAM}"
            ) from error
        body = (
            capture.parse_reply(cast("dict[str, Any]", reply)) if isinstance(reply, dict) else None
        )
        if body is not None:
            return body
        if capture.error is not None:
            raise UpstreamBroken(
                f"The model server {backend!r} answered with an error: {capture.error}"
            )
        raise UpstreamBroken(
            f"The answer of the model server {backend!r} has not the shape of "
            f"{self._dialect.path}. Try again; {_CHECK_UPSTREAM}"
        )

    async def _serve_stream(
        self, call: Call, receive: Receive, stream: EventStream, send: Send
    ) -> None:
        """Events pass as they come; what completes the answer waits for Kafka."""
        capture = call.capture
        relay = StreamRelay(capture)
        try:
            async with asgi.ClientWatch(receive):
                with _UpstreamErrors(call):
                    async with self._open(call) as upstream:
                        capture.version_first = upstream.header(VERSION_HEADER)
                        read = await self._require_stream(call, upstream)
                        await stream.start()
                        await self._relay(call, upstream, relay, stream, read)
                        call.answered()
            if capture.error is not None or not capture.finished():
                raise UpstreamBroken(
                    capture.error
                    or f"The stream of the model server {call.route.backend!r} ended before its "
                    "answer did. Try again."
                )
        except ClientGone:
            await self._calls.record_failure(call, outcome=CallOutcome.client_disconnected)
        except GatewayError as problem:
            await self._calls.record_failure(call, problem)
            await stream.stop_keep_alive()
            if stream.begun:
                await stream.end(relay.error or self._dialect.error_event(problem))
            else:
                await self._reply_problem(send, problem, call_headers(call))
        except asyncio.CancelledError:
            self._calls.record_interrupted(call)
            raise
        else:
            withheld = await self._calls.record_answer(call)
            await stream.end(
                b"".join(relay.held) if withheld is None else self._dialect.error_event(withheld)
            )
            self._context.metrics.added_seconds.observe(call.added_s())

    def _event_stream(self, call: Call, send: Send) -> EventStream:
        silence_s = call.draft.keep_alive_s
        if not silence_s:
            return EventStream(send, lambda: call_headers(call))
        return KeptAlive(send, lambda: call_headers(call), self._dialect.keep_alive, silence_s)

    async def _require_stream(self, call: Call, upstream: UpstreamReply) -> bytes:
        """Raise UpstreamBroken for an answer that is no stream although one was asked for. The
        answer is recorded.

        Returns what was read to find out: the complete stream, if its `Content-Type` is wrong.
        """
        kind = (upstream.header("content-type") or "").partition(";")[0].strip().lower()
        if kind not in _NO_STREAMS:
            return b""
        raw = await upstream.read()
        if is_event_stream(raw):
            return raw
        self._parse_reply(call, raw)
        raise UpstreamBroken(
            f"The model server {call.route.backend!r} was asked for a stream and sent a complete "
            "answer. Ask it without `stream`."
        )

    async def _relay(
        self,
        call: Call,
        upstream: UpstreamReply,
        relay: StreamRelay,
        stream: EventStream,
        read: bytes,
    ) -> None:
        """Pass on what was `read` before, and what comes."""
        if read:
            await self._pass_on(call, relay.feed(read), stream)
        async for data in upstream.pieces():
            await self._pass_on(call, relay.feed(data), stream)
        if passed := relay.close():
            await stream.piece(passed)

    async def _pass_on(self, call: Call, passed: bytes, stream: EventStream) -> None:
        if call.first_token_at is None:
            call.first_token_at = now_ms()
        if passed:
            await stream.piece(passed)

    async def _reply_problem(
        self, send: Send, problem: GatewayError, headers: list[asgi.Header]
    ) -> None:
        await asgi.reply_problem(send, problem, headers, self._dialect.error_body(problem))

    def _open(self, call: Call) -> AbstractAsyncContextManager[UpstreamReply]:
        return self._context.dispatcher.open(call, self._dialect)


_CHECK_UPSTREAM = "if it repeats, check the address of this upstream in the gateway's settings."


class _UpstreamErrors:
    """Turns whatever opening, relaying or parsing an answer raises into UpstreamBroken."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, GatewayError | ClientGone):
            backend = self._call.route.backend
            log.error(
                "an upstream's answer cannot be read",
                call_id=self._call.call_id,
                backend=backend,
                exc_info=error,
            )
            raise UpstreamBroken(
                f"The answer of the model server {backend!r} cannot be read "
                f"({type(error).__name__}). The gateway's log says why."
            ) from error


def _log_failed_call(event: LlmCall) -> None:
    log.warning(
        "call failed",
        api=event.api,
        alias=event.alias,
        backend=event.backend,
        outcome=event.outcome.value,
        failure=event.failure.value if event.failure else None,
        status=event.status_code,
        error=event.error,
    )
