"""Which rollout a call belongs to, with no change to the agent.

In this order: scoped key, path `/rollouts/{rollout}/v1/...`, header `x-fulgurite-rollout`,
`metadata.session_id` of the body, the answer it builds on (`previous_response_id`), the session
that a coding agent names (`harnesses`), the conversation it continues (`conversation_matching`),
and a rollout of its own.

A name that is not an id of ours is a session of that key's owner: the same name is the same
rollout. An id in a reply gives no access. A plain key names only rollouts that its own calls
opened, which their ids tell; a scoped key its own; the admin key any.

The agent's role is the first of: header `x-fulgurite-agent`, path `/agents/{agent}/v1/...`, the
key's, the one whose pattern the system prompt has (`roles`), the sub-agent that a coding agent
names, the alias, unless it is the name of the only policy. With a scoped key, nothing that a coding
agent names is read: its rollout is known, and its roles are those that its run knows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from fulgurite.calls.conversations import MessageChain
from fulgurite.enums import Identity, Mode
from fulgurite.ids import (
    CompletionRef,
    MalformedId,
    RolloutRef,
    external_group,
    is_genuine,
    is_owned,
    is_tagged,
    owned_group,
    parse_completion,
    parse_rollout,
    rollout_of,
)
from services.gateway.errors import Forbidden, InvalidRequest, NotFound, Unavailable, clipped
from services.gateway.identity.authenticator import Caller
from services.gateway.identity.conversation_matching import ConversationMatcher
from services.gateway.identity.declared_groups import DeclaredGroups
from services.gateway.identity.harnesses import HarnessIdentity
from services.gateway.identity.keys import KeyRing

ROLLOUT_HEADER = "x-fulgurite-rollout"
ROLLOUT_ID_HEADER = b"x-fulgurite-rollout-id"
"""Of replies: whose call it was."""
AGENT_HEADER = "x-fulgurite-agent"
SUBJECT_HEADER = "x-fulgurite-subject"
_LONGEST_NAME = 256


class Identified(msgspec.Struct, frozen=True):
    """The rollout of a call."""

    group_id: str
    rollout_id: str
    attempt: int
    mode: Mode
    agent: str
    identity: Identity
    conversation: MessageChain | None = None
    """The conversation whose answer has to be remembered; only for calls that name no rollout."""
    parent_agent: str | None = None
    """The agent that started the one that calls, as a coding agent names it."""


class Named(msgspec.Struct, frozen=True):
    """All places where a request may name its rollout."""

    path: str | None = None
    header: str | None = None
    session: str | None = None
    agent: str | None = None
    prompted: str | None = None
    """The role by the system prompt."""
    harness: HarnessIdentity | None = None
    """What a coding agent says of itself."""
    continues: str | None = None
    items: list[Any] | None = None
    user: str | None = None
    size: int = 0
    """Size of the body in characters."""


class RolloutResolver:
    """Finds the rollout of a call."""

    def __init__(
        self,
        ring: KeyRing,
        groups: DeclaredGroups,
        role_aliases: Mapping[str, str],
        matcher: ConversationMatcher | None = None,
    ) -> None:
        """Without `matcher` a call that names no rollout is always a rollout of its own."""
        self._matcher = matcher
        self._ring = ring
        self._groups = groups
        self._role_aliases = role_aliases

    async def identify(self, caller: Caller, named: Named, alias: str, now_ms: int) -> Identified:
        """The rollout of a call. Raises Forbidden when a key and a name disagree, NotFound for an
        id that this deployment did not give out, InvalidRequest for an invalid name.
        """
        role = self._role(named, caller, alias)
        claims = caller.claims
        if claims is not None:
            for name in (named.path, named.header):
                if name is not None and name != claims.rollout:
                    raise Forbidden(
                        f"This key belongs to rollout {claims.rollout}, but the request names "
                        f"{clipped(name)!r}. Leave the name out, or use that rollout's key.",
                        code="foreign_key",
                    )
            return Identified(
                claims.group, claims.rollout, claims.attempt, claims.mode, role, Identity.scoped_key
            )
        found = await self._with_plain_key(caller, named, alias, role, now_ms)
        return (
            found
            if named.harness is None
            else msgspec.structs.replace(found, parent_agent=named.harness.parent_agent)
        )

    async def remember(self, who: Identified, answers: list[list[Any]]) -> None:
        """Remember the rollout for each of these answers. Call it before the agent has them."""
        if self._matcher is not None and who.conversation is not None:
            await self._matcher.remember(who.conversation, who.rollout_id, answers)

    def genuine(self, text: str) -> RolloutRef:
        """A rollout id that this deployment gave out. Raises NotFound."""
        try:
            ref = parse_rollout(text)
        except MalformedId as error:
            raise NotFound(
                f"Unknown rollout: {clipped(str(error))}. Pass an id that POST /v1/rollouts gave "
                "out.",
                code="unknown_rollout",
            ) from error
        if not any(is_genuine(ref, secret) for secret in self._ring.secrets):
            raise NotFound(
                f"Unknown rollout {clipped(text)}: this deployment did not give out that id. Pass "
                "an id that POST /v1/rollouts gave out.",
                code="unknown_rollout",
            )
        return ref

    def own_completion(self, caller: Caller, text: str | None) -> CompletionRef | None:
        """The call that an id names; None unless it was given out here, in a rollout that this
        caller may name.
        """
        try:
            completion = parse_completion(text or "")
            ref = self.genuine(completion.rollout.rollout_id)
        except (MalformedId, NotFound):
            return None
        given_out = any(
            is_tagged(completion.completion_id, secret) for secret in self._ring.secrets
        )
        return completion if given_out and self.may_name(caller, ref) else None

    def may_name(self, caller: Caller, ref: RolloutRef) -> bool:
        """Whether the rollout is this caller's: the key's own, one that a plain key's calls opened,
        any for the admin key.
        """
        if caller.claims is not None:
            return caller.claims.rollout == ref.rollout_id
        return caller.admin or any(
            is_owned(ref.group_id, caller.owner, secret) for secret in self._ring.secrets
        )

    async def _with_plain_key(
        self, caller: Caller, named: Named, alias: str, role: str, now_ms: int
    ) -> Identified:
        for name, identity in (
            (named.path, Identity.path),
            (named.header, Identity.header),
            (named.session, Identity.header),
        ):
            if name is not None:
                return await self._by_name(caller, name, role, identity)
        continued = await self._continued(caller, named, alias, role)
        if continued is not None:
            return continued
        if named.harness is not None:
            return self._session(caller, named.harness.session, role, Identity.inferred)
        return await self._by_conversation(caller, named, alias, role, now_ms)

    async def _by_name(
        self, caller: Caller, name: str, role: str, identity: Identity
    ) -> Identified:
        if not name.strip() or len(name) > _LONGEST_NAME:
            raise InvalidRequest(
                f"The rollout's name has {len(name)} characters. Send a name of 1 to "
                f"{_LONGEST_NAME} characters that are not all spaces.",
                param="rollout",
            )
        if not name.startswith("ro_"):
            return self._session(caller, name, role, identity)
        ref = self.genuine(name)
        if not self.may_name(caller, ref):
            raise Forbidden(
                f"This key may not name rollout {name}: it was declared, or opened by another "
                "key. Use the rollout's own `api_key` (from POST /v1/rollouts) or the admin key. "
                "For a session of your own, use a name that does not begin with `ro_`.",
                code="foreign_key",
            )
        # Only declared rollouts are remembered, and of these none is a plain key's.
        known = await self._groups.get(ref.group_id) if caller.admin else None
        if known is None:
            return Identified(ref.group_id, ref.rollout_id, 0, Mode.live, role, identity)
        return Identified(
            ref.group_id,
            ref.rollout_id,
            await self._groups.attempt(ref.rollout_id),
            known.mode,
            role,
            identity,
        )

    def _session(self, caller: Caller, name: str, role: str, identity: Identity) -> Identified:
        """The rollout of a session, by the name that the key's owner gave it."""
        group = external_group(caller.owner, name, self._ring.signing_secret)
        return Identified(
            group, rollout_of(group, 0, self._ring.signing_secret), 0, Mode.live, role, identity
        )

    async def _continued(
        self, caller: Caller, named: Named, alias: str, role: str
    ) -> Identified | None:
        """The rollout of an earlier answer; None for an id that names none of this caller's.

        A plain key's agent may next send the complete conversation without an id; it stays in the
        rollout.
        """
        completion = self.own_completion(caller, named.continues)
        if completion is None:
            return None
        ref = completion.rollout
        if not caller.admin:
            conversation = await self._conversation(caller, named, alias)
            return Identified(
                ref.group_id,
                ref.rollout_id,
                completion.attempt,
                Mode.live,
                role,
                Identity.header,
                conversation,
            )
        try:
            known = await self._groups.get(ref.group_id)
        except Unavailable:
            known = None
        mode = Mode.live if known is None else known.mode
        return Identified(
            ref.group_id, ref.rollout_id, completion.attempt, mode, role, Identity.header
        )

    async def _by_conversation(
        self, caller: Caller, named: Named, alias: str, role: str, now_ms: int
    ) -> Identified:
        conversation = await self._conversation(caller, named, alias)
        known = (
            None
            if conversation is None or self._matcher is None
            else await self._matcher.find(conversation)
        )
        if known is not None:
            return Identified(
                parse_rollout(known).group_id,
                known,
                0,
                Mode.live,
                role,
                Identity.inferred,
                conversation,
            )
        group = owned_group(now_ms, os.urandom(5), caller.owner, self._ring.signing_secret)
        return Identified(
            group,
            rollout_of(group, 0, self._ring.signing_secret),
            0,
            Mode.live,
            role,
            Identity.none,
            conversation,
        )

    async def _conversation(self, caller: Caller, named: Named, alias: str) -> MessageChain | None:
        if self._matcher is None or named.items is None:
            return None
        return await self._matcher.conversation(
            caller.owner, named.user, alias, named.items, named.size
        )

    def _role(self, named: Named, caller: Caller, alias: str) -> str:
        if named.agent:
            return named.agent[:_LONGEST_NAME]
        if caller.claims is not None and caller.claims.agent:
            return caller.claims.agent
        if named.prompted is not None:
            return named.prompted
        if caller.claims is None and named.harness is not None and named.harness.agent:
            return named.harness.agent
        return self._role_aliases.get(alias, "")
