"""`GET /v1/responses/{id}`: a recorded response. OpenAI's other operations there are refused, since
they would bypass the log.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec
from starlette.types import Receive, Scope, Send

from services.common.runtime.clock import now_ms
from services.gateway.context import GatewayContext
from services.gateway.errors import ExpiredKey, GatewayError, NotSupported, clipped
from services.gateway.http import asgi
from services.gateway.http.reply_headers import claims_header
from services.gateway.identity.authenticator import Caller
from services.gateway.identity.claims import Claims
from services.gateway.identity.rollout_resolver import ROLLOUT_ID_HEADER


class RecordedResponseEndpoint:
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
            await asgi.reply_problem(send, problem, claims_header(claims))
            return
        await asgi.reply(
            send, 200, msgspec.json.encode(body), [(ROLLOUT_ID_HEADER, rollout.encode())]
        )

    async def _recorded(self, caller: Caller, scope: Scope) -> tuple[dict[str, Any], str]:
        """The response, and its rollout."""
        named = cast("dict[str, str]", scope.get("path_params", {})).get("rest", "")
        if scope["method"] != "GET" or "/" in named:
            raise NotSupported(
                f"{scope['method']} {clipped(scope['path'])} is not supported: the log is never "
                "changed. Read a recorded response (GET /v1/responses/{id}), or build on it "
                "(`previous_response_id` of POST /v1/responses)."
            )
        found = await self._context.responses.find(caller, named)
        asked = {
            name: found.body.get(name) for name in ("instructions", "tools") if name in found.body
        }
        return {**found.head, **asked, "output": found.output}, found.rollout_id
