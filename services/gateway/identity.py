"""Who calls, and which rollout the call belongs to, with no change to the agent.

In this order: scoped key, path `/rollouts/{rollout}/v1/...`, header `x-fulgurite-rollout`, `metadata.session_id` of the body,
and a rollout of its own. A name that is not an id of ours is a session of that key's owner: the same name, the same rollout.
The agent's role: header `x-fulgurite-agent`, else the key's, else the alias where it is not simply the policy's name.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping

import msgspec

from fulgurite.ids import MalformedId, RolloutRef, external_group, is_genuine, mint_group, parse_rollout, rollout_of
from fulgurite.kinds import Identity, Mode
from services.gateway.keys import PREFIX, Claims, KeyRing
from services.gateway.problems import Forbidden, InvalidRequest, NotFound, Unauthorized
from services.gateway.registry import GroupEntry, GroupRegistry

ROLLOUT_HEADER = "x-fulgurite-rollout"
AGENT_HEADER = "x-fulgurite-agent"
_LONGEST_NAME = 256


class Caller(msgspec.Struct, frozen=True):
    """Whose key it is: `admin`, a plain key's owner, or a rollout by its claims."""

    owner: str
    admin: bool
    claims: Claims | None


class Identified(msgspec.Struct, frozen=True):
    """The rollout of a call."""

    group_id: str
    rollout_id: str
    attempt: int
    mode: Mode
    agent: str
    identity: Identity


class Doorkeeper:
    """Knows the keys."""

    def __init__(self, ring: KeyRing, admin_key: str | None, plain_keys: tuple[str, ...], allow_any: bool) -> None:
        self._ring = ring
        self._admin = admin_key.encode() if admin_key else None
        self._plain = frozenset(_digest(key) for key in plain_keys)
        self._allow_any = allow_any

    def admit(self, authorization: str | None, now_ms: int) -> Caller:
        """Raises Unauthorized, ExpiredKey."""
        key = bearer(authorization)
        if not key:
            raise Unauthorized("No API key: send `Authorization: Bearer <key>` (OpenAI's clients do, with OPENAI_API_KEY set).")
        if key.startswith(PREFIX):
            claims = self._ring.verify(key, now_ms)
            return Caller(claims.rollout, admin=False, claims=claims)
        if self._admin is not None and hmac.compare_digest(key.encode(), self._admin):
            return Caller("admin", admin=True, claims=None)
        owner = _digest(key)
        if owner in self._plain or self._allow_any:
            return Caller(owner, admin=False, claims=None)
        raise Unauthorized("Unknown API key: use a rollout's key, or one of FULGURITE_API_KEYS.")


class Named(msgspec.Struct, frozen=True):
    """Where a request names its rollout."""

    path: str | None = None
    header: str | None = None
    session: str | None = None
    agent: str | None = None


class Identifier:
    """Finds the rollout of a call."""

    def __init__(self, ring: KeyRing, registry: GroupRegistry, role_aliases: Mapping[str, str]) -> None:
        self._ring = ring
        self._registry = registry
        self._role_aliases = role_aliases

    async def identify(self, caller: Caller, named: Named, alias: str, now_ms: int) -> Identified:
        """Raises Forbidden when a key and a name disagree, NotFound for an id that nobody here gave out, InvalidRequest for a bad name."""
        role = self._role(named, caller, alias)
        claims = caller.claims
        if claims is not None:
            for name in (named.path, named.header):
                if name is not None and name != claims.rollout:
                    raise Forbidden(
                        f"This key belongs to rollout {claims.rollout}, the request names {name!r}: "
                        "leave the name out, or use that rollout's key.",
                        code="foreign_key",
                    )
            return Identified(claims.group, claims.rollout, claims.attempt, claims.mode, role, Identity.scoped_key)
        for name, identity in ((named.path, Identity.path), (named.header, Identity.header), (named.session, Identity.header)):
            if name is not None:
                return await self._by_name(caller, name, role, identity)
        group = mint_group(now_ms, os.urandom(10))
        return Identified(group, rollout_of(group, 0, self._ring.signing_secret), 0, Mode.live, role, Identity.none)

    def genuine(self, text: str) -> RolloutRef:
        """A rollout id that this deployment gave out. Raises NotFound."""
        try:
            ref = parse_rollout(text)
        except MalformedId as error:
            raise NotFound(f"Unknown rollout: {error}.", code="unknown_rollout") from error
        if not any(is_genuine(ref, secret) for secret in self._ring.secrets):
            raise NotFound(f"Unknown rollout {text}: this deployment did not give out that id.", code="unknown_rollout")
        return ref

    async def entry(self, group_id: str) -> GroupEntry | None:
        """What is remembered of a declared group."""
        return await self._registry.get(group_id)

    async def _by_name(self, caller: Caller, name: str, role: str, identity: Identity) -> Identified:
        if not name.strip() or len(name) > _LONGEST_NAME:
            raise InvalidRequest(f"A rollout or session name has 1 to {_LONGEST_NAME} characters.", param="rollout")
        if not name.startswith("ro_"):
            group = external_group(caller.owner, name, self._ring.signing_secret)
            return Identified(group, rollout_of(group, 0, self._ring.signing_secret), 0, Mode.live, role, identity)
        ref = self.genuine(name)
        known = await self._registry.get(ref.group_id)
        if known is None:
            return Identified(ref.group_id, ref.rollout_id, 0, Mode.live, role, identity)
        return Identified(ref.group_id, ref.rollout_id, await self._registry.attempt(ref.rollout_id), known.mode, role, identity)

    def _role(self, named: Named, caller: Caller, alias: str) -> str:
        if named.agent:
            return named.agent[:_LONGEST_NAME]
        if caller.claims is not None and caller.claims.agent:
            return caller.claims.agent
        return self._role_aliases.get(alias, "")


def bearer(authorization: str | None) -> str:
    """The key of an Authorization header; empty if there is none."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
