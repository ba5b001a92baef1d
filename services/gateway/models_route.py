"""`GET /v1/models` (also under `/rollouts/{rollout}`): the aliases, as OpenAI lists models."""

from __future__ import annotations

import msgspec
from starlette.types import Receive, Scope, Send

from services.gateway import wire
from services.gateway.clock import now_ms
from services.gateway.desk import Desk
from services.gateway.identity import ROLLOUT_ID_HEADER
from services.gateway.keys import Claims
from services.gateway.problems import ExpiredKey, GatewayError


class Models:
    """Raw ASGI, as the calls are."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """OpenAI's list of models."""
        try:
            claims = self._desk.doorkeeper.admit(wire.authorization(scope), now_ms()).claims
        except GatewayError as problem:
            await wire.reply_problem(send, problem, _rollout(problem.claims if isinstance(problem, ExpiredKey) else None))
            return
        data = [
            {"id": route.alias, "object": "model", "created": 0, "owned_by": "fulgurite", "policy": route.policy}
            for route in self._desk.routes.values()
        ]
        await wire.reply(send, 200, msgspec.json.encode({"object": "list", "data": data}), _rollout(claims))


def _rollout(claims: Claims | None) -> list[wire.Header]:
    return [] if claims is None else [(ROLLOUT_ID_HEADER, claims.rollout.encode())]
