"""The gateway's FastAPI app: REST routes, the model APIs as raw ASGI beside them, health, errors.

The routes need the parts of a running gateway (Kafka producer, upstream client), so they are added
when the app starts.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs
from services.gateway.context import GatewayContext, open_context
from services.gateway.http.error_handlers import add_error_handlers
from services.gateway.http.gc_tuning import tune_gc
from services.gateway.http.health_routes import HealthRoutes
from services.gateway.http.model_routes import model_routes
from services.gateway.http.openapi import DESCRIPTION, TAGS, describe, package_version
from services.gateway.http.rest_guard import RestGuard
from services.gateway.http.reward_routes import RewardRoutes
from services.gateway.http.rollout_routes import RolloutRoutes
from services.gateway.recording.call import SHORTEST_HIDDEN_KEY
from services.gateway.settings import GatewaySettings

log = logs.get(__name__)


def create_app(settings: GatewaySettings, kafka: KafkaSettings) -> FastAPI:
    """The app. Its lifespan opens the gateway's parts and closes them."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with open_context(settings, kafka) as context:
            add_routes(app, context)
            tune_gc()
            _warn_of_short_keys(settings)
            log.info(
                "gateway ready",
                aliases=sorted(context.routes),
                kafka=kafka.bootstrap_servers,
                idempotency="redis" if settings.redis_url else "memory",
            )
            yield

    app = FastAPI(
        title="Fulgurite gateway",
        version=package_version(),
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
    )
    app.state.hot = {}
    describe(app)
    app.add_middleware(RestGuard, limits=settings.rest_body_limits())
    add_error_handlers(app)
    return app


def add_routes(app: FastAPI, context: GatewayContext) -> None:
    """Serve the model APIs, REST and health from the context's parts.

    `app.state.hot` gets the endpoints that `FrontDoor` calls without the app's routing.
    """
    app.state.authenticator = context.authenticator
    calls = model_routes(context)
    # First, so that routing finds a call without trying the other routes.
    app.router.routes[:0] = calls
    app.state.hot |= {route.path: route.endpoint for route in calls if route.methods == {"POST"}}
    app.include_router(RolloutRoutes(context).router)
    app.include_router(RewardRoutes(context).router)
    app.include_router(HealthRoutes(context).router)


def _warn_of_short_keys(settings: GatewaySettings) -> None:
    admin = [settings.admin_key.get_secret_value()] if settings.admin_key else []
    short = sum(len(key) < SHORTEST_HIDDEN_KEY for key in [*settings.plain_keys(), *admin])
    if short:
        log.warning(
            "keys of FULGURITE_API_KEYS or FULGURITE_ADMIN_KEY are short: they are easily guessed, "
            "and are not removed from recorded calls. Set longer ones",
            keys=short,
            shortest=SHORTEST_HIDDEN_KEY,
        )
