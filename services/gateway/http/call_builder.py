"""From a request to a call that may go to its upstream: first its key, then its body, its rollout
and its route.
"""

from __future__ import annotations

import os
from typing import cast

import msgspec
from starlette.types import Receive, Scope
from structlog.contextvars import bind_contextvars

from fulgurite.ids import completion_of, subject_of
from fulgurite.selection.context import context_cell
from fulgurite.untrusted_json import Json
from services.gateway.context import GatewayContext
from services.gateway.dialects.dialect import ApiRequest, Dialect
from services.gateway.dialects.variant_parameters import fill_parameters
from services.gateway.errors import ExpiredKey, Forbidden, GatewayError, UnknownModel
from services.gateway.http import asgi
from services.gateway.http.event_stream import keep_alive_s
from services.gateway.identity.authenticator import Caller, bearer
from services.gateway.identity.keys import CALL
from services.gateway.identity.live_training import NO_TRAIN_HEADER
from services.gateway.identity.rollout_resolver import (
    AGENT_HEADER,
    ROLLOUT_HEADER,
    SUBJECT_HEADER,
    Identified,
    Named,
)
from services.gateway.recording.call import Call, Draft
from services.gateway.upstream.route import Route


class CallBuilder:
    """Builds the calls of one API."""

    def __init__(self, context: GatewayContext, dialect: Dialect) -> None:
        self._context = context
        self._dialect = dialect
        self._limits = context.settings.call_body_limits()

    async def build(
        self, draft: Draft, scope: Scope, headers: asgi.Headers, receive: Receive
    ) -> Call:
        """The call. Raises GatewayError for a request that is refused, ClientGone.

        The draft holds what was found so far. Its `owner` is set whenever the key is genuine, so
        that a refused call is recorded in its rollout.
        """
        named = self._named(scope, headers)
        caller = await self._authenticate(draft, headers, named)
        try:
            return await self._build(draft, caller, named, headers, receive)
        except GatewayError:
            if draft.owner is None:
                await self._identify(draft, caller, self._with_request(named, draft))
            raise

    async def _authenticate(self, draft: Draft, headers: asgi.Headers, named: Named) -> Caller:
        """Whose key it is. Raises Unauthorized, Forbidden."""
        authorization = asgi.authorization(headers)
        try:
            caller = self._context.authenticator.admit(authorization, draft.started_at)
        except ExpiredKey as problem:
            # The key is genuine, only late: it still tells whose call it was.
            claims = problem.claims
            expired = Caller(claims.rollout, admin=False, claims=claims)
            await self._identify(draft, expired, Named(agent=named.agent))
            raise
        draft.secret, draft.key = bearer(authorization), caller.owner
        if caller.claims is not None and CALL not in caller.claims.scopes:
            await self._identify(draft, caller, Named(agent=named.agent))
            raise Forbidden(
                "This key is for rewards only. For the agent's calls use the rollout's `api_key`, "
                "not its `reward_key`."
            )
        return caller

    async def _build(
        self, draft: Draft, caller: Caller, named: Named, headers: asgi.Headers, receive: Receive
    ) -> Call:
        context = self._context
        raw = await asgi.read_body(headers, receive, self._limits)
        draft.raw = raw.decode("utf-8", "replace")
        request = draft.request = self._dialect.parse(raw)
        if request.continues is not None or request.references:
            request, draft.raw = await context.responses.continued(caller, request)
            draft.request = request
        draft.sampling = self._dialect.sampling(request, context.sampling)
        person = asgi.header(headers, SUBJECT_HEADER.encode()) or request.user
        draft.subject = subject_of(person, context.ring.signing_secret) if person else None
        who, call_id = await self._identify(draft, caller, self._with_request(named, draft))
        draft.training_use = await context.live_training.use_of(
            caller,
            who,
            request.alias,
            draft.subject,
            asgi.header(headers, NO_TRAIN_HEADER.encode()),
            draft.started_at,
        )
        draft.keep_alive_s = keep_alive_s(headers, context.settings.keep_alive_s)
        alias = context.roles.alias_of(request.alias, who.agent)
        route = self._route(alias, caller, who, request.body)
        context.recorder.check(who.mode)
        request, draft.sampling = fill_parameters(
            request, draft.sampling, route, self._dialect, context.sampling
        )
        request, draft.sampling, limited = context.answer_limits.apply(request, draft.sampling)
        request, draft.sampling, sampled = context.train_sampling.apply(
            request, draft.sampling, route, who.mode
        )
        request, draft.prompt_version = await context.prompts.apply(
            request, self._dialect.api, who, draft.started_at, _named_prompt(caller, request, route)
        )
        draft.sampled = ", ".join(filter(None, (sampled, limited))) or None
        context.dispatcher.admission.size(draft.key, len(draft.raw))
        return Call(
            draft, who, call_id, request, route, self._dialect.capture(request, route, call_id)
        )

    def _named(self, scope: Scope, headers: asgi.Headers) -> Named:
        """What the path and the headers name."""
        path = cast("dict[str, str]", scope.get("path_params", {}))
        return Named(
            path=path.get("rollout"),
            header=asgi.header(headers, ROLLOUT_HEADER.encode()),
            agent=asgi.header(headers, AGENT_HEADER.encode()) or path.get("agent"),
            harness=self._context.harnesses.in_headers(headers),
        )

    def _with_request(self, named: Named, draft: Draft) -> Named:
        """The same, and what the body names if it was read."""
        request = draft.request
        if request is None:
            return named
        return msgspec.structs.replace(
            named,
            prompted=self._context.roles.recognised(request.alias, request.body, self._dialect.api),
            session=request.session,
            harness=named.harness or self._context.harnesses.in_body(request.body),
            continues=request.continues,
            items=request.items,
            user=request.user,
            size=len(draft.raw or ""),
        )

    async def _identify(self, draft: Draft, caller: Caller, named: Named) -> tuple[Identified, str]:
        """The rollout and the call's new id, which become the draft's `owner`."""
        alias = draft.request.alias if draft.request is not None else ""
        try:
            who = await self._context.resolver.identify(caller, named, alias, draft.started_at)
        except GatewayError:
            # The request names another rollout than its key, or one that does not exist: the call
            # belongs to the key's own.
            if named != (own := Named(agent=named.agent)):
                await self._identify(draft, caller, own)
            raise
        call_id = completion_of(
            who.rollout_id, who.attempt, os.urandom(5), self._context.ring.signing_secret
        )
        draft.owner = who, call_id
        # Each call is served in a task, and so in a context, of its own: all its later log lines
        # have both ids.
        bind_contextvars(rollout_id=who.rollout_id, call_id=call_id)
        return draft.owner

    def _route(self, alias: str, caller: Caller, who: Identified, body: Json) -> Route:
        """The first route of the rollout's variant. Raises UnknownModel."""
        claims = caller.claims
        if claims is not None and claims.served_by and alias == claims.alias:
            alias = claims.served_by
        router = self._context.dispatcher.router
        if router.find(alias) is None:
            raise UnknownModel(alias, self._context.routes)
        return router.candidates(
            alias, who.rollout_id, lambda: context_cell(who.agent, body, self._dialect.api)
        )[0]


def _named_prompt(caller: Caller, request: ApiRequest, route: Route) -> str | None:
    """The prompt version that the caller's rollout names for this alias, else the variant's, if the
    route is this alias's own and not that of a role.
    """
    claims = caller.claims
    if claims is not None and claims.alias == request.alias and claims.prompt_version:
        return claims.prompt_version
    return route.prompt if route.alias == request.alias else None
