"""A call's way to a backend: the key's limits, a place in its turn, the best backend that can be reached.

Fails over to the next backend only when nothing can have been generated: no connection, or an engine that has just started and lacks the
adapter. A time-out or a broken answer is the client's to try again. `call.route` is always the backend that was really asked.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from services.gateway.admission import Admission
from services.gateway.backend_health import BackendHealth
from services.gateway.call import Call
from services.gateway.continuation import Continuation
from services.gateway.dialect import ApiRequest, Dialect
from services.gateway.metrics import Metrics
from services.gateway.problems import GatewayError, Overloaded, UpstreamRejected, UpstreamUnreachable
from services.gateway.routing import Router
from services.gateway.settings import Route
from services.gateway.vllm_client import UpstreamClient, UpstreamReply

_NOT_FOUND = 404
_LOADING_S = 1.0
"""An applier brings a restarted engine its adapters within about this time."""


class Dispatcher:
    """One per gateway."""

    def __init__(self, router: Router, admission: Admission, client: UpstreamClient, continuation: Continuation, metrics: Metrics) -> None:
        self.router = router
        self.continuation = continuation
        self._admission = admission
        self._client = client
        self._failovers = metrics.failovers
        self._health = BackendHealth()

    @asynccontextmanager
    async def open(self, call: Call, dialect: Dialect) -> AsyncGenerator[UpstreamReply]:
        """The upstream's answer. Raises TryLater, UpstreamFailed."""
        ways = self.router.candidates(call.request.alias, call.who.rollout_id)
        with self._admission.key(call.draft.key):
            problem: GatewayError | None = None
            recorded = await self.continuation.recorded(call)
            for way in self._health.order(ways, time.monotonic()):
                call.route = way
                async with AsyncExitStack() as stack:
                    try:
                        await stack.enter_async_context(self._admission.gate(way.backend).place(call.draft.key))
                        request = call.request if recorded is None else await self.continuation.prompt(recorded, call, way)
                        reply = await stack.enter_async_context(self._post(call, request, dialect))
                    except UpstreamUnreachable as error:
                        self._health.failed(way.backend, time.monotonic())
                        problem = error
                        self._failovers.labels(way.backend).inc()
                        continue
                    except UpstreamRejected as error:
                        self._health.answered(way.backend)
                        if not _lacks_adapter(way, error):
                            raise
                        problem = Overloaded(
                            f"The backend {way.backend!r} is being given {way.version}. Nothing was generated.", _LOADING_S
                        )
                        self._failovers.labels(way.backend).inc()
                        continue
                    self._health.answered(way.backend)
                    yield reply
                    return
            if problem is not None:
                raise problem

    def _post(self, call: Call, request: ApiRequest, dialect: Dialect) -> AbstractAsyncContextManager[UpstreamReply]:
        route = call.route
        body, headers = dialect.upstream_body(request, route, call.call_id), dialect.upstream_headers(request, route)
        return self._client.open(route, dialect.path, body, call.call_id, call.ask(), headers)


def _lacks_adapter(way: Route, error: UpstreamRejected) -> bool:
    return way.version == way.model and error.upstream_status == _NOT_FOUND
