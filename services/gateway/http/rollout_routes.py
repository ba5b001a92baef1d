"""REST for whoever starts rollouts: `POST /v1/rollouts`, its attempts and statuses, what became of
a rollout (`GET /v1/rollouts/{id}`), and `GET /v1/policies`.

A write answers only once Kafka has acknowledged its event. The event `declared` is published before
the group's keys are given out. A new attempt publishes nothing: it starts with its agent's first
call, or with a `started` status.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from fulgurite.enums import Mode, StatusKind
from fulgurite.events import AgentStatus, Declaration
from fulgurite.failures import FailureKind
from fulgurite.ids import RolloutRef, derive_id, mint_group, rollout_of
from fulgurite.prompts.history import AS_SENT
from fulgurite.topics import AGENT_STATUS
from services.common.runtime.clock import now_ms
from services.gateway.context import GatewayContext
from services.gateway.errors import Forbidden, InvalidRequest, NotFound, UnknownModel, clipped
from services.gateway.http.openapi import READ_ERRORS, WRITE_ERRORS, documented
from services.gateway.http.reply_headers import rollout_header
from services.gateway.http.rest_models import AttemptIn, DeclareIn, StatusIn
from services.gateway.http.rest_parameters import Authorization, IdempotencyKey, genuine_rollout
from services.gateway.identity.authenticator import (
    ADMIN_KEY,
    READ_KEY,
    STATUS_KEY,
    Caller,
    require_scope,
)
from services.gateway.identity.claims import Claims
from services.gateway.identity.declared_groups import GroupEntry
from services.gateway.identity.keys import AGENT_SCOPES, REWARD, REWARD_SCOPES, STATUS
from services.gateway.recording.rollout_view import rollout_view
from services.gateway.upstream.admission import KeyLimits
from services.gateway.upstream.route import Route


class RolloutRoutes:
    """The REST routes of rollouts."""

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
            "/v1/rollouts/{rollout}",
            self.read,
            methods=["GET"],
            response_model=None,
            **documented("agentKey", "rewardKey", "adminKey", errors=(*READ_ERRORS, 404, 503)),
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
        self._require_admin(authorization, now)
        route = self._route(body.alias, "alias")
        if body.served_by is not None:
            route = self._route(body.served_by, "served_by")
        await self._require_prompt(body)
        group = mint_group(now, os.urandom(10))
        rollouts = tuple(
            rollout_of(group, index, self._context.ring.signing_secret) for index in range(body.n)
        )
        entry = GroupEntry(
            body.mode,
            now + int(body.deadline_s * 1000),
            body.agent,
            body.max_attempts,
            tuple(sorted({*body.expected_rewards, *body.reward_weights})),
            body.alias if body.served_by or body.prompt_version else "",
            body.served_by or "",
            body.prompt_version or "",
        )
        event = _declared(body, group, rollouts, route, entry, now)
        # The store first: if it is down, no group may be declared that nobody has keys of.
        await self._context.groups.put(group, entry, now)
        await self._context.recorder.publish(AGENT_STATUS, group, event, mode=body.mode)
        return {
            "group_id": group,
            "deadline": entry.deadline,
            "mode": body.mode.value,
            "alias": body.alias,
            "policy": route.policy,
            "rollouts": [
                self._keys(request, RolloutRef(group, rollout, index), 0, entry)
                for index, rollout in enumerate(rollouts)
            ],
        }

    async def read(
        self,
        rollout: str,
        request: Request,
        response: Response,
        authorization: Authorization = None,
    ) -> dict[str, Any]:
        """What the log holds of a rollout: its state, attempts, calls (without text) and rewards.

        A rollout's `api_key` sees neither task nor rewards: a task may hold the answer.
        """
        caller = self._context.authenticator.admit(authorization, now_ms(), READ_KEY)
        ref = genuine_rollout(self._context.resolver, request, rollout)
        if not self._context.resolver.may_name(caller, ref):
            raise NotFound(
                f"Unknown rollout {rollout}: this key has no rollout of that id. Use one of the "
                f"rollout's own keys, or {ADMIN_KEY}.",
                code="unknown_rollout",
            )
        found = await self._context.recorded_calls.read(ref)
        response.headers.update(rollout_header(request))
        return rollout_view(
            ref, found, with_rewards=caller.claims is None or REWARD in caller.claims.scopes
        )

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
        self._require_admin(authorization, now)
        ref = genuine_rollout(self._context.resolver, request, rollout)
        entry = await self._context.groups.get(ref.group_id) or _given_entry(ref, body)
        number = (
            body.attempt
            if body.attempt is not None
            else await self._context.groups.attempt(ref.rollout_id) + 1
        )
        if number >= entry.max_attempts:
            raise InvalidRequest(
                f"Rollout {rollout} was declared with max_attempts={entry.max_attempts}, so "
                f"attempt {number} does not exist. Declare a group with more attempts.",
                param="attempt",
            )
        await self._context.groups.put_attempt(ref.rollout_id, number, entry, now)
        response.headers.update(rollout_header(request))
        return self._keys(request, ref, number, entry)

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
        ref = genuine_rollout(self._context.resolver, request, rollout)
        require_scope(caller, ref.rollout_id, STATUS, "`api_key`")
        if not caller.admin:
            self._statuses.spend(caller.owner)
        attempt, mode = await self._attempt_and_mode(caller, ref, body)
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

        async def publish() -> dict[str, Any]:
            await self._context.recorder.publish(AGENT_STATUS, ref.group_id, event, mode=mode)
            return {
                "status_id": event.event_id,
                "rollout_id": ref.rollout_id,
                "attempt": attempt,
                "kind": body.kind,
            }

        # The attempt is in the scope, as it is in the event's id: an agent may send the same key in
        # each attempt.
        reply = await self._context.status_idempotency.answer_once(
            f"status:{ref.rollout_id}/{attempt}",
            idempotency_key,
            msgspec.json.encode(body.model_dump(), order="sorted"),
            publish,
        )
        response.headers.update(rollout_header(request))
        return reply

    async def policies(self, authorization: Authorization = None) -> dict[str, Any]:
        """Each policy's newest version, and which version each backend serves."""
        self._context.authenticator.admit(authorization, now_ms(), "any key of this gateway")
        trained = {
            route.policy for route in self._context.routes.values() if route.policy is not None
        }
        return self._context.policies.view.as_json(trained)

    def _require_admin(self, authorization: str | None, now: int) -> None:
        if not self._context.authenticator.admit(authorization, now, ADMIN_KEY).admin:
            raise Forbidden(
                "This key may not declare rollouts or attempts. Use the admin key "
                "(FULGURITE_ADMIN_KEY).",
                code="admin_only",
            )

    def _route(self, alias: str, param: str) -> Route:
        route = self._context.dispatcher.router.find(alias)
        if route is None:
            raise UnknownModel(alias, self._context.routes, param=param)
        return route

    async def _require_prompt(self, body: DeclareIn) -> None:
        """Raise for a prompt version that the alias does not have."""
        version = body.prompt_version
        if version is None:
            return
        _require_one(body)
        if not await self._context.prompts.knows(body.alias, version):
            known = self._context.prompts.history.versions(body.alias)
            names = ", ".join([AS_SENT, *(str(one.version) for one in known)])
            raise NotFound(
                f"{body.alias} has no prompt version {clipped(version)!r}; it has: {names}. Write "
                "one with `fulgurite prompts set`.",
                param="prompt_version",
                code="unknown_prompt_version",
            )

    async def _attempt_and_mode(
        self, caller: Caller, ref: RolloutRef, body: StatusIn
    ) -> tuple[int, Mode]:
        """Those of the key; for the admin key, the latest attempt unless the body names one."""
        if caller.claims is not None:
            return caller.claims.attempt, caller.claims.mode
        entry = await self._context.groups.get(ref.group_id)
        attempt = (
            body.attempt
            if body.attempt is not None
            else await self._context.groups.attempt(ref.rollout_id)
        )
        return attempt, entry.mode if entry is not None else body.mode or Mode.live

    def _keys(
        self, request: Request, ref: RolloutRef, attempt: int, entry: GroupEntry
    ) -> dict[str, Any]:
        """The rollout's keys, and where its agent sends its calls."""
        settings, ring = self._context.settings, self._context.ring
        expiry = entry.deadline + int(settings.key_grace_s * 1000)
        agent = Claims(
            ref.rollout_id,
            attempt,
            ref.group_id,
            entry.agent,
            entry.mode,
            AGENT_SCOPES,
            expiry,
            entry.alias,
            entry.served_by,
            entry.prompt_version,
        )
        evaluator = msgspec.structs.replace(agent, scopes=REWARD_SCOPES)
        base = (settings.public_url or str(request.base_url)).rstrip("/")
        return {
            "rollout_id": ref.rollout_id,
            "index": ref.index,
            "attempt": attempt,
            "base_url": f"{base}/v1",
            "api_key": ring.mint(agent),
            "reward_key": ring.mint(evaluator),
        }


def _declared(
    body: DeclareIn,
    group: str,
    rollouts: tuple[str, ...],
    route: Route,
    entry: GroupEntry,
    now: int,
) -> AgentStatus:
    return AgentStatus(
        event_id=derive_id("declared", group),
        event_time=now,
        group_id=group,
        attempt=0,
        mode=body.mode,
        kind=StatusKind.declared,
        source="gateway",
        will_retry=False,
        declaration=Declaration(
            rollout_ids=rollouts,
            deadline=entry.deadline,
            expected_rewards=tuple(body.expected_rewards),
            reward_weights=body.reward_weights,
            credit_rule=body.credit_rule,
            alias=body.served_by or body.alias,
            policy=route.policy,
            task=msgspec.json.encode(body.task).decode(),
            run_id=body.run_id,
            max_attempts=body.max_attempts,
            prompt_version=body.prompt_version,
        ),
    )


def _given_entry(ref: RolloutRef, body: AttemptIn) -> GroupEntry:
    """What the request says of a group that this gateway has forgotten. Raises NotFound."""
    if body.attempt is None or body.mode is None or body.deadline is None:
        raise NotFound(
            f"This gateway no longer remembers group {ref.group_id}. Send `attempt`, `mode` and "
            "`deadline` (Unix milliseconds) with the request; and `alias`, `served_by` and "
            "`prompt_version` if the group was declared with one of the last two.",
            code="group_forgotten",
        )
    _require_one(body)
    if body.alias is None and (body.served_by or body.prompt_version):
        raise InvalidRequest(
            "`served_by` and `prompt_version` count for calls of one alias: send the group's "
            "`alias` with them.",
            param="alias",
        )
    return GroupEntry(
        body.mode,
        body.deadline,
        body.agent or "",
        body.attempt + 1,
        alias=body.alias or "",
        served_by=body.served_by or "",
        prompt_version=body.prompt_version or "",
    )


def _require_one(body: DeclareIn | AttemptIn) -> None:
    """Raise InvalidRequest for a prompt version together with `served_by`."""
    if body.prompt_version is not None and body.served_by is not None:
        raise InvalidRequest(
            "`prompt_version` names a version of the prompt of `alias`, and with `served_by` "
            "the version that is in force counts: send one of them.",
            param="prompt_version",
        )
