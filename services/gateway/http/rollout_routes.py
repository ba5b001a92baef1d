"""REST for whoever starts rollouts and pays them: `POST /v1/rollouts`, its attempts and status,
`POST /v1/rewards`, `GET /v1/policies`.

Each write answers only once its event is acknowledged by Kafka. `declared` is published before the
group's keys are given out. A new attempt publishes nothing: it starts when its agent's first call,
or a `started` status, says so.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, cast

import msgspec
from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response

from fulgurite.enums import Mode, StatusKind
from fulgurite.events import AgentReward, AgentStatus, Declaration
from fulgurite.failures import FailureKind
from fulgurite.ids import (
    CompletionRef,
    MalformedId,
    RolloutRef,
    derive_id,
    is_tagged,
    mint_group,
    minted_at,
    parse_completion,
    rollout_of,
)
from fulgurite.topics import AGENT_REWARDS, AGENT_STATUS
from services.common.runtime.clock import now_ms
from services.gateway.context import GatewayContext
from services.gateway.errors import Forbidden, InvalidRequest, NotFound, Unavailable
from services.gateway.http.openapi import READ_ERRORS, WRITE_ERRORS, documented
from services.gateway.http.reply_headers import rollout_header
from services.gateway.http.rest_models import AttemptIn, DeclareIn, RewardIn, StatusIn
from services.gateway.identity.authenticator import ADMIN_KEY, REWARD_KEY, STATUS_KEY, Caller
from services.gateway.identity.claims import Claims
from services.gateway.identity.declared_groups import GroupEntry
from services.gateway.identity.idempotency import KEEP_S
from services.gateway.identity.keys import AGENT_SCOPES, REWARD, REWARD_SCOPES, STATUS
from services.gateway.settings import ANY_NAME
from services.gateway.upstream.admission import KeyLimits

Authorization = Annotated[str | None, Header(include_in_schema=False)]
IdempotencyKey = Annotated[str | None, Header(max_length=256)]


class RolloutRoutes:
    """The REST routes of rollouts and rewards."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._statuses = KeyLimits(
            0, context.settings.key_statuses_per_minute, setting="FULGURITE_KEY_STATUSES_PER_MINUTE"
        )
        self.router = APIRouter(tags=["Rollouts and rewards"])
        add = self.router.add_api_route
        add(
            "/v1/rollouts",
            self.declare,
            methods=["POST"],
            status_code=201,
            response_model=None,
            **documented("adminKey", errors=WRITE_ERRORS, reply="RolloutsDeclared"),
        )
        add(
            "/v1/rollouts/{rollout}/attempts",
            self.attempt,
            methods=["POST"],
            status_code=201,
            response_model=None,
            **documented("adminKey", errors=WRITE_ERRORS),
        )
        add(
            "/v1/rollouts/{rollout}/status",
            self.status,
            methods=["POST"],
            status_code=201,
            response_model=None,
            **documented("agentKey", "adminKey", errors=WRITE_ERRORS, reply="StatusRecorded"),
        )
        add(
            "/v1/rewards",
            self.reward,
            methods=["POST"],
            status_code=201,
            response_model=None,
            **documented("rewardKey", "adminKey", errors=WRITE_ERRORS, reply="RewardRecorded"),
        )
        add(
            "/v1/policies",
            self.policies,
            methods=["GET"],
            response_model=None,
            **documented("agentKey", "adminKey", errors=READ_ERRORS),
        )

    async def declare(
        self, body: DeclareIn, request: Request, authorization: Authorization = None
    ) -> dict[str, Any]:
        """Declare a group of `n` rollouts of one task; returns their ids and keys."""
        now = now_ms()
        self._admin(authorization, now)
        route = self._context.routes.get(body.alias)
        if route is None:
            known = ", ".join(sorted(self._context.routes))
            raise NotFound(
                f"Unknown model {body.alias!r}. This gateway serves: {known}.",
                param="alias",
                code="model_not_found",
            )
        group = mint_group(now, os.urandom(10))
        rollouts = tuple(
            rollout_of(group, index, self._context.ring.signing_secret) for index in range(body.n)
        )
        names = tuple(sorted({*body.expected_rewards, *body.reward_weights}))
        entry = GroupEntry(
            body.mode, now + int(body.deadline_s * 1000), body.agent, body.max_attempts, names
        )
        declaration = Declaration(
            rollout_ids=rollouts,
            deadline=entry.deadline,
            expected_rewards=tuple(body.expected_rewards),
            reward_weights=body.reward_weights,
            credit_rule=body.credit_rule,
            alias=body.alias,
            policy=route.policy,
            task=msgspec.json.encode(body.task).decode(),
            run_id=body.run_id,
            max_attempts=body.max_attempts,
        )
        event = AgentStatus(
            event_id=derive_id("declared", group),
            event_time=now,
            group_id=group,
            attempt=0,
            mode=body.mode,
            kind=StatusKind.declared,
            source="gateway",
            will_retry=False,
            declaration=declaration,
        )
        # Before the declaration: a store that is down must not leave a declared group that nobody
        # has keys of.
        await self._context.groups.put(group, entry, now)
        await self._context.recorder.publish(AGENT_STATUS, group, event, mode=body.mode)
        return {
            "group_id": group,
            "deadline": entry.deadline,
            "mode": body.mode.value,
            "alias": body.alias,
            "policy": route.policy,
            "rollouts": [
                self._keys(request, group, rollout, index, 0, entry)
                for index, rollout in enumerate(rollouts)
            ],
        }

    async def attempt(
        self,
        rollout: str,
        body: AttemptIn,
        request: Request,
        response: Response,
        authorization: Authorization = None,
    ) -> dict[str, Any]:
        """The keys of a rollout's next attempt, or of the one named."""
        now = now_ms()
        self._admin(authorization, now)
        ref = self._genuine(request, rollout)
        entry = await self._context.groups.get(ref.group_id)
        if entry is None:
            if body.attempt is None or body.mode is None or body.deadline is None:
                raise NotFound(
                    f"This gateway no longer remembers group {ref.group_id}: "
                    "pass `attempt`, `mode` and `deadline` (Unix milliseconds) with the request.",
                    code="group_forgotten",
                )
            entry = GroupEntry(body.mode, body.deadline, body.agent or "", body.attempt + 1)
        number = (
            body.attempt
            if body.attempt is not None
            else await self._context.groups.attempt(ref.rollout_id) + 1
        )
        if number >= entry.max_attempts:
            raise InvalidRequest(
                f"Rollout {rollout} was declared with max_attempts={entry.max_attempts}, so "
                f"attempt {number} does not exist.",
                param="attempt",
            )
        await self._context.groups.put_attempt(ref.rollout_id, number, entry, now)
        response.headers.update(rollout_header(request))
        return self._keys(request, ref.group_id, ref.rollout_id, ref.index, number, entry)

    async def status(
        self,
        rollout: str,
        body: StatusIn,
        request: Request,
        response: Response,
        authorization: Authorization = None,
        idempotency_key: IdempotencyKey = None,
    ) -> dict[str, Any]:
        """What the agent or its runner says of an attempt."""
        now = now_ms()
        caller = self._context.authenticator.admit(authorization, now, STATUS_KEY)
        ref = self._may(caller, self._genuine(request, rollout), STATUS, "`api_key`")
        if not caller.admin:
            self._statuses.spend(caller.owner)
        attempt, mode = body.attempt or 0, body.mode or Mode.live
        if caller.claims is not None:
            attempt, mode = caller.claims.attempt, caller.claims.mode
        else:
            entry = await self._context.groups.get(ref.group_id)
            mode = entry.mode if entry is not None else mode
            attempt = (
                body.attempt
                if body.attempt is not None
                else await self._context.groups.attempt(ref.rollout_id)
            )
        event = AgentStatus(
            event_id=derive_id("status", rollout, attempt, idempotency_key or os.urandom(16).hex()),
            event_time=now,
            group_id=ref.group_id,
            rollout_id=ref.rollout_id,
            attempt=attempt,
            mode=mode,
            kind=StatusKind(body.kind),
            source="runner" if caller.admin else "agent",
            failure=body.failure or (FailureKind.unknown if body.kind == "failed" else None),
            message=body.message,
            exit_code=body.exit_code,
            will_retry=body.will_retry,
        )
        await self._context.recorder.publish(AGENT_STATUS, ref.group_id, event, mode=mode)
        response.headers.update(rollout_header(request))
        return {
            "status_id": event.event_id,
            "rollout_id": ref.rollout_id,
            "attempt": attempt,
            "kind": body.kind,
        }

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
        rollout, completion = _paid(body)
        ref = self._may(caller, self._genuine(request, rollout), REWARD, "`reward_key`")
        await self._require_name(caller, ref, body.name)
        if completion is not None:
            await self._require_given_out(completion, now)
        call_id = None if completion is None else completion.completion_id
        attempt = (
            (caller.claims.attempt if caller.claims else body.attempt)
            if completion is None
            else completion.attempt
        )
        scope, payload = f"reward:{rollout}", _canonical(body)
        if idempotency_key is not None:
            before = await self._context.idempotency.reserve(scope, idempotency_key, payload)
            if before is not None:
                return JSONResponse(msgspec.json.decode(before), 201, rollout_header(request))
        event = AgentReward(
            event_id=derive_id("reward", rollout, idempotency_key or os.urandom(16).hex()),
            event_time=now,
            group_id=ref.group_id,
            rollout_id=ref.rollout_id,
            attempt=attempt,
            call_id=call_id,
            choice=(body.choice or 0) if call_id is not None else None,
            name=body.name,
            value=body.value,
            final=body.final,
            source="rest",
            idempotency_key=idempotency_key,
            metadata=None if body.metadata is None else msgspec.json.encode(body.metadata).decode(),
        )
        await self._context.recorder.publish(
            AGENT_REWARDS,
            ref.group_id,
            event,
            mode=caller.claims.mode if caller.claims else Mode.live,
        )
        reply = {
            "reward_id": event.event_id,
            "rollout_id": rollout,
            "completion_id": call_id,
            "name": body.name,
            "value": body.value,
        }
        if idempotency_key is not None:
            await self._context.idempotency.store_reply(
                scope, idempotency_key, payload, msgspec.json.encode(reply).decode()
            )
        return JSONResponse(reply, 201, rollout_header(request))

    async def policies(self, authorization: Authorization = None) -> dict[str, Any]:
        """Each policy's newest version, and which version each backend serves."""
        self._context.authenticator.admit(authorization, now_ms(), "any key of this gateway")
        trained = {
            route.policy for route in self._context.routes.values() if route.policy is not None
        }
        return self._context.policies.view.as_json(trained)

    def _admin(self, authorization: str | None, now: int) -> None:
        if not self._context.authenticator.admit(authorization, now, ADMIN_KEY).admin:
            raise Forbidden(
                "Only the admin key (FULGURITE_ADMIN_KEY) may declare rollouts and attempts.",
                code="admin_only",
            )

    def _genuine(self, request: Request, rollout: str) -> RolloutRef:
        """The rollout, which the reply then names. Raises NotFound."""
        ref = self._context.resolver.genuine(rollout)
        request.state.rollout_id = ref.rollout_id
        return ref

    async def _require_name(self, caller: Caller, ref: RolloutRef, name: str) -> None:
        """Raises InvalidRequest for a reward's name that nobody declared: it would count, and be
        missed where it was meant to be.
        """
        try:
            entry = await self._context.groups.get(ref.group_id)
        except Unavailable:
            return  # A reward without an idempotency key needs no store.
        if entry is None and caller.claims is not None:
            return  # A scoped key is of a declared group; which names that has is forgotten.
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

    async def _require_given_out(self, completion: CompletionRef, now: int) -> None:
        """Raises NotFound for a completion id that no gateway of this deployment gave out.

        An id from before there were tags is taken: the rewarder counts no reward of a completion
        that the episode does not have.
        """
        if any(
            is_tagged(completion.completion_id, secret) for secret in self._context.ring.secrets
        ):
            return
        try:
            since = await self._context.groups.tagged_since()
        except Unavailable:
            return
        began = minted_at(completion.rollout.group_id)
        if began is None or began > now:
            # A session that a user named tells no time that has been: of it, ids without a tag are
            # taken for a week.
            began = now - KEEP_S * 1000
        if began >= since:
            raise NotFound(
                f"Unknown completion {completion.completion_id}: this deployment did not give "
                "out that id. Pass the `id` of a reply.",
                param="completion_id",
                code="unknown_completion",
            )

    def _may(self, caller: Caller, ref: RolloutRef, scope: str, which: str) -> RolloutRef:
        """The rollout, if this caller has this say about it. Raises Forbidden."""
        claims = caller.claims
        if claims is None and not caller.admin:
            raise Forbidden(
                f"A plain agent key may not do this: use the rollout's {which}, or the admin key."
            )
        if claims is not None and scope not in claims.scopes:
            raise Forbidden(
                f"This key may not do this: it is for {' and '.join(claims.scopes)}. Use the "
                f"rollout's {which}."
            )
        if claims is not None and claims.rollout != ref.rollout_id:
            raise Forbidden(
                f"This key belongs to rollout {claims.rollout}, not to {ref.rollout_id}. Use "
                f"that rollout's {which}.",
                code="foreign_key",
            )
        return ref

    def _keys(
        self,
        request: Request,
        group: str,
        rollout: str,
        index: int,
        attempt: int,
        entry: GroupEntry,
    ) -> dict[str, Any]:
        settings = self._context.settings
        expiry = entry.deadline + int(settings.key_grace_s * 1000)
        agent = Claims(rollout, attempt, group, entry.agent, entry.mode, AGENT_SCOPES, expiry)
        evaluator = msgspec.structs.replace(agent, scopes=REWARD_SCOPES)
        base = (settings.public_url or str(request.base_url)).rstrip("/")
        return {
            "rollout_id": rollout,
            "index": index,
            "attempt": attempt,
            "base_url": f"{base}/v1",
            "api_key": self._context.ring.mint(agent),
            "reward_key": self._context.ring.mint(evaluator),
        }


def _canonical(body: RewardIn) -> bytes:
    """The same bytes for the same reward: other white space, another order of keys or `1` for `1.0`
    makes no other one.
    """
    return msgspec.json.encode(_whole(body.model_dump()), order="sorted")


_EXACT = 1 << 53
"""Beyond it not every integer is a float."""


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in cast("list[Any]", value)]
    return (
        int(value)
        if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT
        else value
    )


def _paid(body: RewardIn) -> tuple[str, CompletionRef | None]:
    """The rollout that a reward is for, and the completion if it is for one. Raises InvalidRequest,
    NotFound.
    """
    if (body.rollout_id is None) == (body.completion_id is None):
        raise InvalidRequest(
            "Name what is paid: either `rollout_id` or `completion_id` (the `id` of a reply).",
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
            f"Unknown completion: {error}.", param="completion_id", code="unknown_completion"
        ) from error
    return ref.rollout.rollout_id, ref
