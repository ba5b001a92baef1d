"""Dispatch a call to a backend: check its key's limits, wait for a place, open the best backend
that can be reached.

It fails over to the next backend only when nothing can have been generated: there is no connection,
or an engine that has just started lacks the adapter, or the version that the log says it has. Where
only the version is missing, the call waits for it. After a time-out or a broken answer, the client
decides whether to try again. `call.route` is always the backend that was asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType

from services.gateway.dialects.dialect import Dialect
from services.gateway.errors import (
    GatewayError,
    NotReady,
    Overloaded,
    UpstreamRejected,
    UpstreamUnreachable,
)
from services.gateway.recording.call import Call
from services.gateway.telemetry.metrics import Metrics
from services.gateway.upstream.admission import Admission, Gate
from services.gateway.upstream.backend_health import BackendHealth
from services.gateway.upstream.client import UpstreamClient, UpstreamReply
from services.gateway.upstream.continuation import Continuation
from services.gateway.upstream.dictation import Dictation
from services.gateway.upstream.route import Route
from services.gateway.upstream.routing import Router

_NOT_FOUND = 404
_ASK_AGAIN_S = 0.2
_LOADING_S = 1.0
"""An applier brings a restarted engine its adapters within about this time."""


class Dispatcher:
    """Opens upstream answers; one per gateway."""

    def __init__(
        self,
        router: Router,
        admission: Admission,
        client: UpstreamClient,
        continuation: Continuation,
        dictation: Dictation,
        metrics: Metrics,
    ) -> None:
        self.router = router
        self.continuation = continuation
        self.dictation = dictation
        self.admission = admission
        self.client = client
        self.failovers = metrics.failovers
        self.health = BackendHealth()

    def open(self, call: Call, dialect: Dialect) -> AbstractAsyncContextManager[UpstreamReply]:
        """The upstream's answer. Raises TryLater, UpstreamFailed."""
        answer = _Answer(self, call, dialect)
        return self._limited(call.draft.key, answer) if self.admission.limited else answer

    @asynccontextmanager
    async def _limited(self, key: str, answer: _Answer) -> AsyncGenerator[UpstreamReply]:
        with self.admission.key(key):
            async with answer as reply:
                yield reply


class _Answer:
    """A place at a backend and its answer, for as long as this context lasts. It is a class, as a
    generator for each call would cost more.
    """

    __slots__ = ("_call", "_dialect", "_dispatcher", "_gate", "_reply")

    def __init__(self, dispatcher: Dispatcher, call: Call, dialect: Dialect) -> None:
        self._dispatcher = dispatcher
        self._call = call
        self._dialect = dialect
        self._gate: Gate | None = None
        self._reply: UpstreamReply | None = None

    async def __aenter__(self) -> UpstreamReply:
        recorded = await self._dispatcher.continuation.recorded(self._call)
        deadline = time.monotonic() + self._dispatcher.admission.patience_s
        while True:
            try:
                return await self._best(recorded)
            except NotReady:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _best(self, recorded: list[int] | None) -> UpstreamReply:
        """The answer of the first backend that gives one. Raises NotReady if one of them
        soon will.
        """
        dispatcher, call = self._dispatcher, self._call
        problem: GatewayError | None = None
        for route in dispatcher.health.order(self._candidates(), time.monotonic()):
            call.route = route
            try:
                reply = await self._ask(route, recorded)
            except UpstreamUnreachable as error:
                dispatcher.health.failed(route.backend, time.monotonic())
                problem = problem if isinstance(problem, NotReady) else error
            except NotReady as error:
                dispatcher.health.answered(route.backend)
                problem = error
            except UpstreamRejected as error:
                dispatcher.health.answered(route.backend)
                if not _lacks_adapter(route, error):
                    raise
                problem = Overloaded(
                    f"The model server {route.backend!r} is loading {route.version}. Nothing was "
                    "generated; try again shortly.",
                    _LOADING_S,
                )
            else:
                dispatcher.health.answered(route.backend)
                return reply
            dispatcher.failovers.labels(route.backend).inc()
        assert problem is not None, "there is always a route"
        raise problem

    def _candidates(self) -> tuple[Route, ...]:
        """The routes of the rollout's variant, best first.

        A call was prepared for the kind, the prompt and the parameters of its variant, so it stays
        there if the alias was routed to others while it waited.
        """
        prepared = self._call.route
        found = self._dispatcher.router.candidates(
            prepared.alias, self._call.who.rollout_id, lambda: prepared.cell
        )
        return found if _preparation(found[0]) == _preparation(prepared) else (prepared,)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._reply is not None:
            self._reply.close()
        if self._gate is not None:
            self._gate.leave(self._call.draft.key)

    async def _ask(self, route: Route, recorded: list[int] | None) -> UpstreamReply:
        dispatcher, call, gate = (
            self._dispatcher,
            self._call,
            self._dispatcher.admission.gate(route.backend),
        )
        await gate.enter(call.draft.key)
        try:
            request = (
                call.request
                if recorded is None
                else await dispatcher.continuation.prompt(recorded, call, route)
            )
            request = await dispatcher.dictation.applied(request, call, route)
            body, headers = (
                self._dialect.upstream_body(request, route, call.call_id),
                self._dialect.upstream_headers(request, route),
            )
            self._reply = await dispatcher.client.post(
                route, self._dialect.path, body, call.call_id, call.ask(), headers
            )
        except BaseException:
            gate.leave(call.draft.key)
            raise
        self._gate = gate
        return self._reply


def _preparation(route: Route) -> tuple[object, ...]:
    """What a request was changed by for its route."""
    return route.kind, route.prompt, route.parameters


def _lacks_adapter(route: Route, error: UpstreamRejected) -> bool:
    return route.version == route.model and error.upstream_status == _NOT_FOUND
