"""Parameters that several REST routes have."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Request

from fulgurite.ids import RolloutRef
from services.gateway.identity.rollout_resolver import RolloutResolver

Authorization = Annotated[str | None, Header(include_in_schema=False)]
IdempotencyKey = Annotated[str | None, Header(max_length=256)]


def genuine_rollout(resolver: RolloutResolver, request: Request, rollout_id: str) -> RolloutRef:
    """The rollout of that id, which the reply's header then names. Raises NotFound for an id that
    this deployment did not give out.
    """
    ref = resolver.genuine(rollout_id)
    request.state.rollout_id = ref.rollout_id
    return ref
