"""`GET /v1/models` and `/v1/models/{id}` (also under `/rollouts/{rollout}`): the aliases, as
OpenAI's and Anthropic's clients expect them.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec
from starlette.types import Receive, Scope, Send

from services.common.runtime.clock import now_ms
from services.gateway.context import GatewayContext
from services.gateway.errors import ExpiredKey, GatewayError, UnknownModel
from services.gateway.http import asgi
from services.gateway.http.reply_headers import claims_header
from services.gateway.identity.claims import Claims
from services.gateway.upstream.route import Route


class ModelsEndpoint:
    """The models, as a raw ASGI endpoint."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reply with the list, or with the model that the path names."""
        claims: Claims | None = None
        try:
            claims = self._context.authenticator.admit(
                asgi.authorization(asgi.headers_of(scope)), now_ms()
            ).claims
            body = self._body(cast("dict[str, str]", scope.get("path_params", {})).get("model"))
        except GatewayError as problem:
            claims = problem.claims if isinstance(problem, ExpiredKey) else claims
            await asgi.reply_problem(send, problem, claims_header(claims))
            return
        await asgi.reply(send, 200, msgspec.json.encode(body), claims_header(claims))

    def _body(self, name: str | None) -> dict[str, Any]:
        routes = self._context.routes
        if name is None:
            data = [self._model(route) for route in routes.values()]
            ids = list(routes)
            return {
                "object": "list",
                "data": data,
                "has_more": False,
                "first_id": ids[0] if ids else None,
                "last_id": ids[-1] if ids else None,
            }
        route = self._context.dispatcher.router.find(name)
        if route is None:
            raise UnknownModel(name, routes)
        return self._model(route)

    def _model(self, route: Route) -> dict[str, Any]:
        return {
            "id": route.alias,
            "object": "model",
            "created": 0,
            "owned_by": "fulgurite",
            "policy": route.policy,
            "upstream": route.alias in self._context.settings.upstreams,
            "type": "model",
            "display_name": route.alias,
            "created_at": "1970-01-01T00:00:00Z",
        }
