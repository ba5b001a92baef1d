"""`POST /v1/rewards`: a reward for a rollout, or for one choice of one completion. It answers only
once Kafka has acknowledged the event.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, cast

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from fulgurite.enums import Mode
from fulgurite.events import AgentReward
from fulgurite.ids import (
    CompletionRef,
    MalformedId,
    RolloutRef,
    derive_id,
    is_tagged,
    minted_at,
    parse_completion,
)
from fulgurite.topics import AGENT_REWARDS
from services.common.runtime.clock import now_ms
from services.gateway.context import GatewayContext
from services.gateway.errors import InvalidRequest, NotFound, Unavailable
from services.gateway.http.openapi import WRITE_ERRORS, documented
from services.gateway.http.reply_headers import rollout_header
from services.gateway.http.rest_models import RewardIn
from services.gateway.http.rest_parameters import Authorization, IdempotencyKey, genuine_rollout
from services.gateway.identity.authenticator import REWARD_KEY, Caller, require_scope
from services.gateway.identity.declared_groups import GroupEntry
from services.gateway.identity.idempotency import KEEP_S
from services.gateway.identity.keys import REWARD
from services.gateway.settings import ANY_NAME


class RewardRoutes:
    """The REST route of rewards."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self.router = APIRouter(tags=["Rollouts and rewards"])
        self.router.add_api_route(
            "/v1/rewards",
            self.reward,
            methods=["POST"],
            status_code=201,
            response_model=None,
            **documented("rewardKey", "adminKey", errors=WRITE_ERRORS, reply="RewardRecorded"),
        )

    async def reward(
        self,
        body: RewardIn,
        request: Request,
        authorization: Authorization = None,
        idempotency_key: IdempotencyKey = None,
    ) -> JSONResponse:
        """Pay a rollout, or one action of it."""
        now = now_ms()
        caller = self._context.authenticator.admit(authorization, now, REWARD_KEY)
        rollout, completion = _rewarded(body)
        ref = genuine_rollout(self._context.resolver, request, rollout)
        require_scope(caller, ref.rollout_id, REWARD, "`reward_key`")
        if not body.allow_unknown:
            await self._require_known(caller, ref, completion, body, now)

        async def publish() -> dict[str, Any]:
            event = _event(body, caller, ref, completion, idempotency_key, now)
            await self._context.recorder.publish(
                AGENT_REWARDS,
                ref.group_id,
                event,
                mode=caller.claims.mode if caller.claims else Mode.live,
            )
            return {
                "reward_id": event.event_id,
                "rollout_id": rollout,
                "completion_id": event.call_id,
                "name": body.name,
                "value": body.value,
            }

        reply = await self._context.idempotency.answer_once(
            f"reward:{rollout}", idempotency_key, _canonical(body), publish
        )
        return JSONResponse(reply, 201, rollout_header(request))

    async def _require_known(
        self,
        caller: Caller,
        ref: RolloutRef,
        completion: CompletionRef | None,
        body: RewardIn,
        now: int,
    ) -> None:
        """Raise InvalidRequest or NotFound for a name, a completion or a rollout that does not
        exist.
        """
        entry: GroupEntry | None = None
        # A reward without an idempotency key needs no store.
        with suppress(Unavailable):
            entry = await self._context.groups.get(ref.group_id)
            self._require_declared_name(caller, ref, body.name, entry)
        if completion is not None:
            await self._require_genuine(completion, now)
            await self._context.recorded_calls.require_call(completion, body.choice)
        elif entry is None and caller.claims is None:
            await self._context.recorded_calls.require_rollout(ref)

    def _require_declared_name(
        self, caller: Caller, ref: RolloutRef, name: str, entry: GroupEntry | None
    ) -> None:
        """Raise InvalidRequest for a reward's name that nobody declared. Otherwise a misspelt name
        would count as another reward, and the meant one would be missing.
        """
        if entry is None and caller.claims is not None:
            return  # The key is of a declared group, whose names this gateway no longer remembers.
        declared = entry.rewards if entry is not None else ()
        names = declared or self._context.settings.rewards()
        if name in names or ANY_NAME in names:
            return
        remedy = (
            ""
            if declared
            else ". Declare the name (`expected_rewards`), or add it to FULGURITE_REWARD_NAMES"
        )
        raise InvalidRequest(
            f"Rollout {ref.rollout_id} has no reward {name!r}. Its rewards are: "
            f"{', '.join(names)}{remedy}.",
            param="name",
            code="unknown_reward",
        )

    async def _require_genuine(self, completion: CompletionRef, now: int) -> None:
        """Raise NotFound for a completion id that no gateway of this deployment gave out, without a
        look-up in the log. An id without a tag passes if it is older than tags.
        """
        if any(
            is_tagged(completion.completion_id, secret) for secret in self._context.ring.secrets
        ):
            return
        try:
            tagged_since = await self._context.groups.tagged_since()
        except Unavailable:
            return
        began = minted_at(completion.rollout.group_id)
        if began is None or began > now:
            # The id of a session that a user named holds no time in the past. For a week after tags
            # came, its ids pass without one.
            began = now - KEEP_S * 1000
        if began >= tagged_since:
            raise NotFound(
                f"Unknown completion {completion.completion_id}: this deployment did not give "
                "out that id. Pass the `id` of a reply.",
                param="completion_id",
                code="unknown_completion",
            )


def _event(
    body: RewardIn,
    caller: Caller,
    ref: RolloutRef,
    completion: CompletionRef | None,
    idempotency_key: str | None,
    now: int,
) -> AgentReward:
    if completion is not None:
        attempt = completion.attempt
    else:
        attempt = caller.claims.attempt if caller.claims else body.attempt
    return AgentReward(
        event_id=derive_id("reward", ref.rollout_id, idempotency_key or os.urandom(16).hex()),
        event_time=now,
        group_id=ref.group_id,
        rollout_id=ref.rollout_id,
        attempt=attempt,
        call_id=None if completion is None else completion.completion_id,
        choice=None if completion is None else body.choice or 0,
        name=body.name,
        value=body.value,
        final=body.final,
        source="rest",
        idempotency_key=idempotency_key,
        metadata=None if body.metadata is None else msgspec.json.encode(body.metadata).decode(),
    )


def _rewarded(body: RewardIn) -> tuple[str, CompletionRef | None]:
    """The rollout that a reward is for, and the completion if it is for one. Raises InvalidRequest,
    NotFound.
    """
    if (body.rollout_id is None) == (body.completion_id is None):
        raise InvalidRequest(
            "The reward names both a rollout and a completion, or neither. Send either "
            "`rollout_id` or `completion_id` (the `id` of a reply).",
            param="rollout_id",
        )
    if body.completion_id is None:
        if body.choice is not None:
            raise InvalidRequest(
                "`choice` needs a `completion_id`: it is a choice of one call.", param="choice"
            )
        return body.rollout_id or "", None
    try:
        ref = parse_completion(body.completion_id)
    except MalformedId as error:
        raise NotFound(
            f"Unknown completion: {error}. Pass the `id` of a reply.",
            param="completion_id",
            code="unknown_completion",
        ) from error
    return ref.rollout.rollout_id, ref


def _canonical(body: RewardIn) -> bytes:
    """The same bytes for the same reward: white space, the order of keys, and `1` for `1.0` make no
    difference.
    """
    reward = body.model_dump(exclude={"allow_unknown"})
    return msgspec.json.encode(_with_integers(reward), order="sorted")


_EXACT = 1 << 53
"""Beyond it not every integer is a float."""


def _with_integers(value: Any) -> Any:
    """The value with each float that is an integer as one."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {name: _with_integers(inner) for name, inner in fields.items()}
    if isinstance(value, list):
        return [_with_integers(inner) for inner in cast("list[Any]", value)]
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value
