"""The gateway: an agent's OpenAI endpoint that records every call in Kafka before the answer is
complete.

Writes `llm.calls`, `agent.status`, `agent.rewards`; reads the policy topics, and of `llm.calls` the
responses that requests build on. Stateless but for a cache and idempotency keys. `python -m
services.gateway.main` serves it; SIGTERM lets streams end and flushes the log's producer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any, NoReturn, cast

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Route as WebRoute
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from services.common.kafka.codec import make_codec
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs
from services.common.runtime.clock import now_ms
from services.common.runtime.ending import run_service
from services.common.runtime.process_secrets import hide_from_other_processes
from services.gateway.context import GatewayContext
from services.gateway.dialects.anthropic_errors import AnthropicErrors
from services.gateway.dialects.openai_errors import openai_error_body
from services.gateway.dialects.registry import DIALECTS
from services.gateway.dialects.train_sampling import TrainSamplings
from services.gateway.errors import ExpiredKey, GatewayError, InvalidRequest, NotFound, clipped
from services.gateway.http.connection import KEEP_ALIVE_S, protocol_class, raise_open_files
from services.gateway.http.endpoint import Endpoint
from services.gateway.http.error_responses import error_headers
from services.gateway.http.front_door import FrontDoor
from services.gateway.http.gc_tuning import tune_gc
from services.gateway.http.health_routes import HealthRoutes
from services.gateway.http.models_route import Models, Responses
from services.gateway.http.openapi import describe
from services.gateway.http.rest_guard import RestGuard
from services.gateway.http.rollout_routes import RolloutRoutes, naming
from services.gateway.identity.authenticator import Authenticator
from services.gateway.identity.conversation_matching import MEMORY_LIMIT, ConversationMatcher
from services.gateway.identity.declared_groups import DeclaredGroups
from services.gateway.identity.idempotency import Idempotency
from services.gateway.identity.keys import KeyRing
from services.gateway.identity.rollout_resolver import RolloutResolver
from services.gateway.identity.store import MemoryStore, RedisStore, Store
from services.gateway.recording.call_search import CallSearch
from services.gateway.recording.recorded_responses import PLACES_IN_MEMORY, RecordedResponses
from services.gateway.recording.recorder import Recorder
from services.gateway.settings import GatewaySettings
from services.gateway.telemetry.metrics import Metrics
from services.gateway.telemetry.tracing import open_tracer
from services.gateway.telemetry.version_metric import ServedVersions
from services.gateway.upstream.admission import Admission
from services.gateway.upstream.client import UpstreamClient
from services.gateway.upstream.continuation import ANSWERS_IN_MEMORY, Continuation
from services.gateway.upstream.dispatch import Dispatcher
from services.gateway.upstream.policies import PolicyTail
from services.gateway.upstream.routing import Router

log = logs.get(__name__)

_BURST_LINGER_MS = 0.5
"""Each agent waits for its event, and each request to Kafka costs as much as an event: a busy
gateway's leave some ten together.
"""


_NAMED = 20
"""Wrong fields that an error names."""
_NOT_FOUND, _NO_SUCH_METHOD = 404, 405


@asynccontextmanager
async def open_context(
    settings: GatewaySettings, kafka: KafkaSettings
) -> AsyncGenerator[GatewayContext]:
    """Make every part, and take them down in an order that loses nothing. Raises ValueError for
    settings that make no sense.
    """
    ring = KeyRing.parse(settings.signing_keys.get_secret_value())
    routes = settings.routes()
    codec = make_codec()
    metrics = Metrics()
    store: Store = (
        RedisStore(settings.redis_url.get_secret_value()) if settings.redis_url else MemoryStore()
    )
    groups = DeclaredGroups(store, now_ms())
    producer = EventProducer(
        kafka,
        codec,
        "gateway",
        delivery_timeout_s=settings.ack_timeout_s,
        burst_linger_ms=_BURST_LINGER_MS,
    )
    recorder = Recorder(producer, kafka, codec, settings, metrics)
    upstream, policies = UpstreamClient(settings), PolicyTail(kafka, codec, settings.adapters())
    # Without Redis a bounded store of their own: tokens are many.
    answers = store if settings.redis_url else MemoryStore(limit=ANSWERS_IN_MEMORY)
    resolver = RolloutResolver(
        ring,
        groups,
        {a: a for a, route in routes.items() if route.policy is not None and a != route.policy},
        _matcher(settings, ring, store, metrics),
    )
    places = store if settings.redis_url else MemoryStore(limit=PLACES_IN_MEMORY)
    router = Router(
        routes, settings.backends(), settings.adapters(), settings.policy, policies.view
    )
    context = GatewayContext(
        settings=settings,
        kafka=kafka,
        routes=routes,
        sampling=settings.default_sampling.sampling(),
        ring=ring,
        authenticator=Authenticator(
            ring,
            settings.admin_key.get_secret_value() if settings.admin_key else None,
            settings.plain_keys(),
            settings.allow_any_key,
            settings.operations_key.get_secret_value() if settings.operations_key else None,
        ),
        resolver=resolver,
        groups=groups,
        store=store,
        idempotency=Idempotency(store),
        recorder=recorder,
        responses=RecordedResponses(
            resolver,
            places,
            CallSearch(kafka, codec),
            recorder.problem,
            settings.call_bounds(),
            metrics,
        ),
        upstream=upstream,
        dispatcher=Dispatcher(
            router,
            Admission(settings, metrics),
            upstream,
            Continuation(settings.continued(), answers, upstream),
            metrics,
        ),
        train_sampling=TrainSamplings(settings.train_sampling),
        policies=policies,
        metrics=metrics,
        tracer=open_tracer(),
    )
    metrics.registry.register(ServedVersions(policies.view))
    recorder.start()
    context.policies.start()
    try:
        yield context
    finally:
        context.responses.close()
        await context.upstream.close()
        left = await recorder.close()
        context.policies.close()
        await store.close()
        await asyncio.to_thread(context.tracer.close)
        log.info("gateway stopped", unacknowledged=left)


def create_app(settings: GatewaySettings, kafka: KafkaSettings) -> FastAPI:
    """The app; its parts are made when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with open_context(settings, kafka) as context:
            app.state.authenticator = context.authenticator
            # First, so that the hot routes are found without looking at the others.
            routes = _model_routes(context)
            app.router.routes[:0] = routes
            app.state.hot |= {
                route.path: route.endpoint for route in routes if route.methods == {"POST"}
            }
            app.include_router(RolloutRoutes(context).router)
            app.include_router(HealthRoutes(context).router)
            tune_gc()
            log.info(
                "gateway ready",
                aliases=sorted(context.routes),
                kafka=kafka.bootstrap_servers,
                idempotency="redis" if settings.redis_url else "memory",
            )
            yield

    app = FastAPI(title="Fulgurite gateway", lifespan=lifespan)
    app.state.hot = {}
    describe(app)
    app.add_middleware(RestGuard, bounds=settings.rest_bounds())
    app.add_exception_handler(GatewayError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    return app


def _matcher(
    settings: GatewaySettings, ring: KeyRing, store: Store, metrics: Metrics
) -> ConversationMatcher | None:
    """Conversations are recognised over Redis, or over a memory of their own: many of them must not
    crowd out idempotency keys.
    """
    if not settings.infer_conversations:
        return None
    memory = store if settings.redis_url else MemoryStore(MEMORY_LIMIT)
    return ConversationMatcher(memory, ring.signing_secret, settings.conversation_ttl_s, metrics)


_PREFIXES = ("", "/rollouts/{rollout}", "/agents/{agent}", "/rollouts/{rollout}/agents/{agent}")


def _model_routes(context: GatewayContext) -> list[WebRoute]:
    """The model APIs, each also under paths that name the rollout, the agent's role, or both."""
    calls = [(dialect.path, ["POST"], Endpoint(context, dialect)) for dialect in DIALECTS]
    models = Models(context)
    served = [
        *calls,
        ("/v1/models", ["GET"], models),
        ("/v1/models/{model:path}", ["GET"], models),
        ("/v1/responses/{rest:path}", ["GET", "POST", "DELETE"], Responses(context)),
    ]
    return [
        WebRoute(prefix + path, app, methods=methods)
        for prefix in _PREFIXES
        for path, methods, app in served
    ]


async def _on_problem(request: Request, error: Exception) -> Response:
    problem = error if isinstance(error, GatewayError) else GatewayError("The gateway failed.")
    if isinstance(problem, ExpiredKey):
        request.state.rollout_id = problem.claims.rollout
    return Response(
        openai_error_body(problem),
        problem.status,
        {**error_headers(problem), **naming(request)},
        "application/json",
    )


async def _on_invalid(request: Request, error: Exception) -> Response:
    details = (
        cast("Sequence[Mapping[str, Any]]", error.errors())
        if isinstance(error, RequestValidationError)
        else ()
    )
    return await _on_problem(request, invalid(details))


def invalid(details: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """pydantic's findings: every field that is wrong, by name."""
    places = [_place(detail) for detail in details]
    said = [
        f"{f'`{place}`' if place else 'The body'}: {clipped(str(detail.get('msg', 'invalid')))}"
        for place, detail in zip(places, details, strict=True)
    ]
    more = f"; {len(said) - _NAMED} more" if len(said) > _NAMED else ""
    return InvalidRequest(
        f"{'; '.join(said[:_NAMED]) or 'The request is invalid'}{more}. See /docs for the fields.",
        param=next(filter(None, places), None),
    )


def _place(detail: Mapping[str, Any]) -> str:
    return clipped(
        ".".join(str(part) for part in detail.get("loc", ()) if part not in ("body", "header"))
    )


async def _on_http(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, and what the framework refuses by itself."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    problem: GatewayError = NotFound(
        f"No route {clipped(request.method)} {clipped(request.url.path)}. "
        "Agents use /v1/chat/completions, /v1/responses or /v1/messages; see /docs for the rest."
    )
    if status not in (_NOT_FOUND, _NO_SUCH_METHOD):
        problem = InvalidRequest(
            f"{error.detail if isinstance(error, HTTPException) else error}. See /docs for "
            "what this route takes."
        )
    problem.status = status
    if "/v1/messages" in request.url.path:
        return Response(
            AnthropicErrors().error_body(problem),
            status,
            error_headers(problem),
            "application/json",
        )
    return await _on_problem(request, problem)


async def _on_bug(request: Request, error: Exception) -> Response:
    log.error("unexpected error", path=request.url.path, exc_info=error)
    return await _on_problem(
        request,
        GatewayError("The gateway failed; its log says why. Try again.", code="internal_error"),
    )


def run(settings: GatewaySettings, kafka: KafkaSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    app = create_app(settings, kafka)
    # Half of them for clients, a quarter for those that come all at once, the rest for upstreams,
    # the log and the disk.
    files = raise_open_files()
    # Calls have no use for their client's address; uvicorn would look for a proxy's headers in
    # each.
    behind_proxies = ProxyHeadersMiddleware(
        cast(Any, app), os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")
    )
    uvicorn.run(
        FrontDoor(cast(ASGIApp, behind_proxies), app.state.hot, _on_bug),
        proxy_headers=False,
        server_header=False,
        host=settings.gateway_host,
        port=settings.gateway_port,
        access_log=False,
        log_config=None,
        http=protocol_class(
            settings.client_write_timeout_s, settings.request_timeout_s, files // 2
        ),
        timeout_graceful_shutdown=settings.drain_s,
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=min(4096, files // 4),
        lifespan="on",
    )


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def main() -> None:
    """Settings from the environment. Ends with 0 after SIGTERM and SIGINT, which uvicorn raises
    anew when it is done.
    """
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    hide_from_other_processes()
    settings = GatewaySettings()  # pyright: ignore[reportCallIssue]
    logs.configure("gateway", settings.log_level)
    run(settings, KafkaSettings())


if __name__ == "__main__":
    sys.exit(run_service("gateway", main))
