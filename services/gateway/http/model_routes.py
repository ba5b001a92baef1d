"""The raw ASGI routes of the model APIs, each also under paths that name the rollout, the agent's
role, or both.
"""

from __future__ import annotations

from starlette.routing import Route

from services.gateway.context import GatewayContext
from services.gateway.dialects.registry import DIALECTS
from services.gateway.http.endpoint import Endpoint
from services.gateway.http.models_endpoint import ModelsEndpoint
from services.gateway.http.recorded_response_endpoint import RecordedResponseEndpoint

_PREFIXES = ("", "/rollouts/{rollout}", "/agents/{agent}", "/rollouts/{rollout}/agents/{agent}")


def model_routes(context: GatewayContext) -> list[Route]:
    """One route for each API and prefix."""
    calls = [(dialect.path, ["POST"], Endpoint(context, dialect)) for dialect in DIALECTS]
    models = ModelsEndpoint(context)
    endpoints = [
        *calls,
        ("/v1/models", ["GET"], models),
        ("/v1/models/{model:path}", ["GET"], models),
        ("/v1/responses/{rest:path}", ["GET", "POST", "DELETE"], RecordedResponseEndpoint(context)),
    ]
    return [
        Route(prefix + path, endpoint, methods=methods)
        for prefix in _PREFIXES
        for path, methods, endpoint in endpoints
    ]
