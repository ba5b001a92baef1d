"""The one endpoint behind every model API: what an unmodified agent talks to, also under
`/rollouts/{rollout}`.

Every call ends as one event of `llm.calls`, whatever became of it. A completed answer's completion
marker (the reply; in a stream what the dialect's capture marks) leaves only after Kafka
acknowledged that event.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, cast

import msgspec
from starlette.types import Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from fulgurite.enums import CallOutcome
from fulgurite.events import LlmCall
from fulgurite.ids import completion_of, subject_of
from services.common.runtime import logs
from services.common.runtime.clock import now_ms
from services.gateway.context import GatewayContext
from services.gateway.dialects.dialect import ApiRequest, Dialect
from services.gateway.errors import (
    ClientGone,
    ExpiredKey,
    Forbidden,
    GatewayError,
    NotFound,
    Unavailable,
    Unrecordable,
    UpstreamBroken,
)
from services.gateway.http import asgi
from services.gateway.http.event_stream import EventStream, KeptAlive, keep_alive_s
from services.gateway.http.reply_headers import call_headers, rollout_headers
from services.gateway.http.sse_relay import StreamRelay, is_event_stream
from services.gateway.identity.authenticator import Caller, bearer
from services.gateway.identity.keys import CALL
from services.gateway.identity.rollout_resolver import (
    AGENT_HEADER,
    ROLLOUT_HEADER,
    SUBJECT_HEADER,
    Identified,
    Named,
)
from services.gateway.recording.call import Call, Draft, refusal
from services.gateway.upstream.client import VERSION_HEADER, VERSION_LAST_HEADER, UpstreamReply
from services.gateway.upstream.route import Route

log = logs.get(__name__)

_SERVER_ERROR = 500
_EXCERPT = 200
_NO_STREAMS = ("application/json", "application/problem+json", "text/html")


class Endpoint:
    """A raw ASGI endpoint over a dialect: FastAPI's own request handling would cost as much again
    as everything done here.
    """

    def __init__(self, context: GatewayContext, dialect: Dialect) -> None:
        self._context = context
        self._dialect = dialect
        self._bounds = context.settings.call_bounds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call, from its first byte to the last."""
        headers = asgi.headers_of(scope)
        trace = self._context.tracer.begin(self._dialect.api, asgi.traceparent(headers))
        draft = Draft(self._dialect.api, now_ms(), trace, self._context.sampling)
        try:
            await self._serve(draft, _named(scope, headers), headers, receive, send)
        finally:
            trace.end(draft.event)
            if draft.event is not None and (draft.event.status_code or 0) >= _SERVER_ERROR:
                _tell(draft.event)

    async def _serve(
        self, draft: Draft, named: Named, headers: asgi.Headers, receive: Receive, send: Send
    ) -> None:
        try:
            call = await self._admit(draft, named, headers, receive)
        except ClientGone:
            return
        except GatewayError as problem:
            await self._refuse(draft, problem, send)
            return
        self._context.recorder.begin(call.call_id, call.who)
        try:
            if call.request.stream:
                async with self._event_stream(call, send) as stream:
                    await self._stream(call, receive, stream, send)
            else:
                await self._whole(call, receive, send)
        finally:
            self._context.recorder.end(call.call_id)

    async def _admit(
        self, draft: Draft, named: Named, headers: asgi.Headers, receive: Receive
    ) -> Call:
        """Everything that can be said against a call before it reaches an upstream. Raises
        GatewayError, ClientGone.
        """
        caller = await self._caller(draft, headers, named)
        request = await self._read(draft, caller, named, headers, receive)
        if request.continues is not None:
            request = await self._go_on(draft, caller, named, request)
        draft.sampling = self._dialect.sampling(request, self._context.sampling)
        person = asgi.header(headers, SUBJECT_HEADER.encode()) or request.user
        draft.subject = subject_of(person, self._context.ring.signing_secret) if person else None
        who, call_id = await self._identify(
            draft, caller, _also(named, request, len(draft.raw or "")), request.alias
        )
        draft.keep_alive_s = keep_alive_s(headers, self._context.settings.keep_alive_s)
        route = self._route(request)
        self._context.recorder.check(who.mode)
        request, draft.sampling, draft.sampled = self._context.train_sampling.apply(
            request, draft.sampling, route, who.mode
        )
        self._context.dispatcher.admission.size(draft.key, len(draft.raw or ""))
        return Call(
            draft, who, call_id, request, route, self._dialect.capture(request, route, call_id)
        )

    async def _caller(self, draft: Draft, headers: asgi.Headers, named: Named) -> Caller:
        """Whose key it is. Raises Unauthorized, Forbidden."""
        authorization = asgi.authorization(headers)
        try:
            caller = self._context.authenticator.admit(authorization, draft.started_at)
        except ExpiredKey as problem:
            # Genuine, only late: it is still known whose call it was.
            claims = problem.claims
            await self._identify(
                draft,
                Caller(claims.rollout, admin=False, claims=claims),
                Named(agent=named.agent),
                "",
            )
            raise
        draft.secret, draft.key = bearer(authorization), caller.owner
        if caller.claims is not None and CALL not in caller.claims.scopes:
            await self._identify(draft, caller, Named(agent=named.agent), "")
            raise Forbidden(
                "This key is for rewards only: the agent's calls need the rollout's `api_key`, "
                "not its `reward_key`."
            )
        return caller

    async def _read(
        self, draft: Draft, caller: Caller, named: Named, headers: asgi.Headers, receive: Receive
    ) -> ApiRequest:
        """What is asked. Raises InvalidRequest; by then it is known whose call it was."""
        try:
            raw = await asgi.read_body(headers, receive, self._bounds)
            draft.raw = raw.decode("utf-8", "replace")
            request = draft.request = self._dialect.parse(raw)
        except GatewayError:
            await self._identify(draft, caller, named, "")
            raise
        return request

    async def _go_on(
        self, draft: Draft, caller: Caller, named: Named, request: ApiRequest
    ) -> ApiRequest:
        """The request with what it builds on. Raises NotFound, InvalidRequest, Unavailable; by then
        it is known whose call it was.
        """
        try:
            draft.request, draft.raw = await self._context.responses.continued(caller, request)
        except GatewayError:
            await self._identify(
                draft, caller, _also(named, request, len(draft.raw or "")), request.alias
            )
            raise
        return draft.request

    async def _identify(
        self, draft: Draft, caller: Caller, named: Named, alias: str
    ) -> tuple[Identified, str]:
        identify = self._context.resolver.identify
        try:
            who = await identify(caller, named, alias, draft.started_at)
        except GatewayError:
            # The request names another rollout than its key, or none that there is: it is the key's
            # that made it.
            if named != (own := Named(agent=named.agent)):
                await self._identify(draft, caller, own, alias)
            raise
        draft.owner = (
            who,
            completion_of(
                who.rollout_id, who.attempt, os.urandom(5), self._context.ring.signing_secret
            ),
        )
        # Each call is served in a task, hence a context, of its own: every later line of the log
        # bears both.
        bind_contextvars(rollout_id=who.rollout_id, call_id=draft.owner[1])
        return draft.owner

    def _route(self, request: ApiRequest) -> Route:
        route = self._context.routes.get(request.alias)
        if route is None:
            known = ", ".join(sorted(self._context.routes))
            raise NotFound(
                f"Unknown model {request.alias!r}. This gateway serves: {known}.",
                param="model",
                code="model_not_found",
            )
        return route

    async def _refuse(self, draft: Draft, problem: GatewayError, send: Send) -> None:
        """Answer with the error; record it, if it is known whose call it was."""
        if draft.owner is None:
            await self._reply_problem(send, problem, [])
            return
        event = draft.event = refusal(draft, *draft.owner, problem, now_ms())
        if self._context.recorder.problem() is None:
            await self._record_quietly(event)
        else:
            self._context.recorder.record_call_soon(event)
        await self._reply_problem(send, problem, rollout_headers(draft.owner[0]))

    async def _whole(self, call: Call, receive: Receive, send: Send) -> None:
        """One upstream answer, one event, one reply, in this order."""
        capture = call.capture
        try:
            async with asgi.ClientWatch(receive):
                with _Reading(call):
                    async with self._open(call) as upstream:
                        capture.version_first = upstream.header(VERSION_HEADER)
                        capture.version_last = upstream.header(VERSION_LAST_HEADER)
                        raw = await upstream.read()
                    call.answered()
                    call.first_token_at = now_ms()
                    body = self._take(call, raw)
        except ClientGone:
            await self._record_failed(call, outcome=CallOutcome.client_disconnected)
            return
        except GatewayError as problem:
            await self._record_failed(call, problem)
            await self._reply_problem(send, problem, call_headers(call))
            return
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        withheld = await self._record_answer(call)
        if withheld is None:
            await asgi.reply(send, 200, body, call_headers(call))
            self._context.metrics.added_seconds.observe(call.added_s())
        else:
            await self._reply_problem(send, withheld, call_headers(call))

    def _take(self, call: Call, raw: bytes) -> bytes:
        """A whole answer → the body for the agent. Raises UpstreamBroken, with the upstream's own
        words where it has any.
        """
        backend, capture = call.route.backend, call.capture
        try:
            reply: Any = capture.decode_reply(raw)
        except ValueError as error:
            said = raw[:_EXCERPT].decode("utf-8", "replace")
            raise UpstreamBroken(
                f"The answer of the model server {backend!r} is not JSON: {said!r}."
            ) from error
        body = (
            capture.take_reply(cast("dict[str, Any]", reply)) if isinstance(reply, dict) else None
        )
        if body is not None:
            return body
        if capture.error is not None:
            raise UpstreamBroken(
                f"The model server {backend!r} answered with an error: {capture.error}"
            )
        raise UpstreamBroken(
            f"The answer of the model server {backend!r} is no answer of {self._dialect.path}."
        )

    async def _refuse_whole(self, call: Call, upstream: UpstreamReply) -> bytes:
        """Raise UpstreamBroken for an answer that is no stream, although one was asked for. What it
        says is recorded.

        Returns what was read of a stream to find out: all of one whose `Content-Type` is another's.
        """
        kind = (upstream.header("content-type") or "").partition(";")[0].strip().lower()
        if kind not in _NO_STREAMS:
            return b""
        raw = await upstream.read()
        if is_event_stream(raw):
            return raw
        self._take(call, raw)
        raise UpstreamBroken(
            f"The model server {call.route.backend!r} was asked for a stream and sent a whole "
            "answer. Ask it without `stream`."
        )

    def _event_stream(self, call: Call, send: Send) -> EventStream:
        silence_s = call.draft.keep_alive_s
        if not silence_s:
            return EventStream(send, lambda: call_headers(call))
        return KeptAlive(send, lambda: call_headers(call), self._dialect.keep_alive, silence_s)

    async def _stream(self, call: Call, receive: Receive, stream: EventStream, send: Send) -> None:
        """Events pass as they come; the completion marker waits for the log."""
        capture = call.capture
        relay = StreamRelay(capture)
        try:
            async with asgi.ClientWatch(receive):
                with _Reading(call):
                    async with self._open(call) as upstream:
                        capture.version_first = upstream.header(VERSION_HEADER)
                        read = await self._refuse_whole(call, upstream)
                        await stream.start()
                        await self._relay(call, upstream, relay, stream, read)
                        call.answered()
            if capture.error is not None or not capture.finished():
                raise UpstreamBroken(
                    capture.error
                    or f"The stream of the model server {call.route.backend!r} ended before "
                    "its answer did."
                )
        except ClientGone:
            await self._record_failed(call, outcome=CallOutcome.client_disconnected)
        except GatewayError as problem:
            await self._record_failed(call, problem)
            await stream.settle()
            if stream.begun:
                await stream.end(relay.error or self._dialect.error_event(problem))
            else:
                await self._reply_problem(send, problem, call_headers(call))
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        else:
            withheld = await self._record_answer(call)
            await stream.end(
                b"".join(relay.held) if withheld is None else self._dialect.error_event(withheld)
            )
            self._context.metrics.added_seconds.observe(call.added_s())

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

    async def _record_answer(self, call: Call) -> GatewayError | None:
        """Return once the answer is in the log; the problem if it cannot be, and must be
        withheld.
        """
        metrics, first = self._context.metrics, call.first_token_at or call.started_at
        metrics.upstream_seconds.observe(call.upstream_s())
        metrics.first_token_seconds.observe((first - call.started_at) / 1000)
        remembered = self._remember(call)
        call.draft.trace.publish()
        try:
            event = self._event(call)
            delivery = await self._context.recorder.record_call(event)
        except Unavailable as problem:
            metrics.withheld.inc()
            return (
                await self._record_withheld(call) if isinstance(problem, Unrecordable) else problem
            )
        except Exception as error:
            # Whatever an upstream answers, there is an event of the call.
            log.error(
                "an answer makes no event",
                call_id=call.call_id,
                backend=call.route.backend,
                exc_info=error,
            )
            metrics.withheld.inc()
            return await self._record_withheld(call)
        finally:
            call.draft.trace.published()
            if remembered is not None:
                await remembered
        try:
            await self._context.responses.remember(event, delivery)
        except Exception as error:
            log.error(
                "a response is not remembered: the next one cannot build on it",
                call_id=call.call_id,
                exc_info=error,
            )
        return None

    def _remember(self, call: Call) -> asyncio.Task[None] | None:
        """While the log takes the answer, note whose conversation it is, and its tokens: the
        agent's next call must find them.
        """
        if (
            call.who.conversation is None
            and call.request.alias not in self._context.dispatcher.continuation.aliases
        ):
            return None
        return asyncio.create_task(self._keep(call))

    async def _keep(self, call: Call) -> None:
        try:
            if call.who.conversation is not None:
                await self._context.resolver.remember(call.who, call.capture.said())
            await self._context.dispatcher.continuation.remember(call)
        except Exception as error:
            # The answer is good all the same.
            log.error(
                "an answer is not remembered: the next turn opens a rollout of its own",
                call_id=call.call_id,
                exc_info=error,
            )

    async def _record_withheld(self, call: Call) -> UpstreamBroken:
        """Record an answer that makes no event as broken, without what it said; returns the problem
        that the client gets.
        """
        problem = UpstreamBroken(
            f"The answer of the model server {call.route.backend!r} cannot be recorded, and is "
            "not given."
        )
        await self._record_quietly(self._event(call, problem, with_answer=False))
        return problem

    async def _record_failed(
        self,
        call: Call,
        problem: GatewayError | None = None,
        outcome: CallOutcome = CallOutcome.success,
    ) -> None:
        """Record a call without a complete answer: with what came of it, if that makes an event."""
        try:
            event = self._event(call, problem, outcome)
            await self._context.recorder.record_call(event)
        except Unavailable as error:
            if isinstance(error, Unrecordable):
                await self._record_quietly(self._event(call, problem, outcome, with_answer=False))
            else:
                log.warning("a call without an answer is not in the log", call_id=call.call_id)
        except Exception as error:
            log.error(
                "an answer makes no event",
                call_id=call.call_id,
                backend=call.route.backend,
                exc_info=error,
            )
            await self._record_quietly(self._event(call, problem, outcome, with_answer=False))

    async def _record_quietly(self, event: LlmCall) -> None:
        """For calls without an answer: the log being down as well changes nothing for the
        client.
        """
        try:
            await self._context.recorder.record_call(event)
        except Unavailable:
            log.warning(
                "a call without an answer is not in the log",
                call_id=event.call_id,
                outcome=event.outcome.value,
            )

    def _abandon(self, call: Call) -> None:
        """The gateway itself is being stopped, and not given the time to finish."""
        try:
            event = self._event(call, outcome=CallOutcome.client_disconnected)
        except Exception as error:
            log.error(
                "an answer makes no event",
                call_id=call.call_id,
                backend=call.route.backend,
                exc_info=error,
            )
            event = self._event(call, outcome=CallOutcome.client_disconnected, with_answer=False)
        self._context.recorder.record_call_soon(event)

    def _event(
        self,
        call: Call,
        problem: GatewayError | None = None,
        outcome: CallOutcome = CallOutcome.success,
        *,
        with_answer: bool = True,
    ) -> LlmCall:
        mode = self._context.settings.logprobs_mode
        event = call.draft.event = call.event(
            mode, now_ms(), problem, outcome, with_answer=with_answer
        )
        if call.capture.unread and with_answer:
            self._context.metrics.unread_chunks.inc(call.capture.unread)
            log.warning(
                "parts of an answer were not understood",
                call_id=call.call_id,
                backend=event.backend,
                parts=call.capture.unread,
            )
        return event

    async def _reply_problem(
        self, send: Send, problem: GatewayError, headers: list[asgi.Header]
    ) -> None:
        await asgi.reply_problem(send, problem, headers, self._dialect.error_body(problem))

    def _open(self, call: Call) -> AbstractAsyncContextManager[UpstreamReply]:
        return self._context.dispatcher.open(call, self._dialect)


class _Reading:
    """The edge to upstreams: whatever opening, relaying or capturing an answer raises becomes
    UpstreamBroken.
    """

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
                "an upstream's answer was not understood",
                call_id=self._call.call_id,
                backend=backend,
                exc_info=error,
            )
            raise UpstreamBroken(
                f"The answer of the model server {backend!r} cannot be read "
                f"({type(error).__name__})."
            ) from error


def _tell(event: LlmCall) -> None:
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


def _named(scope: Scope, headers: asgi.Headers) -> Named:
    path = cast("dict[str, str]", scope.get("path_params", {}))
    return Named(
        path=path.get("rollout"),
        header=asgi.header(headers, ROLLOUT_HEADER.encode()),
        agent=asgi.header(headers, AGENT_HEADER.encode()) or path.get("agent"),
    )


def _also(named: Named, request: ApiRequest, size: int) -> Named:
    return msgspec.structs.replace(
        named,
        session=request.session,
        continues=request.continues,
        items=request.items,
        user=request.user,
        size=size,
    )
