"""`GET /v1/models` and `/v1/models/{id}` (also under `/rollouts/{rollout}`): the aliases, as
OpenAI's and Anthropic's clients expect them.

Also `GET /v1/responses/{id}`: a recorded response. OpenAI's other operations there are refused,
since they would bypass the log.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec
from starlette.types import Receive, Scope, Send

from services.common.runtime.clock import now_ms
from services.gateway.context import GatewayContext
from services.gateway.errors import ExpiredKey, GatewayError, NotFound, NotSupported
from services.gateway.http import asgi
from services.gateway.identity.authenticator import Caller
from services.gateway.identity.claims import Claims
from services.gateway.identity.rollout_resolver import ROLLOUT_ID_HEADER
from services.gateway.upstream.route import Route


class Models:
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
            await asgi.reply_problem(send, problem, _rollout(claims))
            return
        await asgi.reply(send, 200, msgspec.json.encode(body), _rollout(claims))

    def _body(self, name: str | None) -> dict[str, Any]:
        routes = self._context.routes
        if name is None:
            data = [_model(route) for route in routes.values()]
            ids = list(routes)
            return {
                "object": "list",
                "data": data,
                "has_more": False,
                "first_id": ids[0] if ids else None,
                "last_id": ids[-1] if ids else None,
            }
        if name not in routes:
            raise NotFound(
                f"Unknown model {name!r}. This gateway serves: {', '.join(sorted(routes))}.",
                param="model",
                code="model_not_found",
            )
        return _model(routes[name])


class Responses:
    """The recorded responses, as a raw ASGI endpoint."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reply with the recorded response, or refuse."""
        claims: Claims | None = None
        try:
            caller = self._context.authenticator.admit(
                asgi.authorization(asgi.headers_of(scope)), now_ms()
            )
            claims = caller.claims
            body, rollout = await self._recorded(caller, scope)
        except GatewayError as problem:
            claims = problem.claims if isinstance(problem, ExpiredKey) else claims
            await asgi.reply_problem(send, problem, _rollout(claims))
            return
        await asgi.reply(
            send, 200, msgspec.json.encode(body), [(ROLLOUT_ID_HEADER, rollout.encode())]
        )

    async def _recorded(self, caller: Caller, scope: Scope) -> tuple[dict[str, Any], str]:
        """The response, and its rollout."""
        named = cast("dict[str, str]", scope.get("path_params", {})).get("rest", "")
        if scope["method"] != "GET" or "/" in named:
            raise NotSupported(
                f"{scope['method']} is not supported for a recorded response, as the log is never "
                "changed. Read it (GET /v1/responses/{id}), or build on it "
                "(`previous_response_id` of POST /v1/responses)."
            )
        found = await self._context.responses.find(caller, named)
        asked = {
            name: found.body.get(name) for name in ("instructions", "tools") if name in found.body
        }
        return {**found.head, **asked, "output": found.output}, found.rollout_id


def _rollout(claims: Claims | None) -> list[asgi.Header]:
    return [] if claims is None else [(ROLLOUT_ID_HEADER, claims.rollout.encode())]


def _model(route: Route) -> dict[str, Any]:
    return {
        "id": route.alias,
        "object": "model",
        "created": 0,
        "owned_by": "fulgurite",
        "policy": route.policy,
        "type": "model",
        "display_name": route.alias,
        "created_at": "1970-01-01T00:00:00Z",
    }
