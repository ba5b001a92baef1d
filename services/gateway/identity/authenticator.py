"""Whose key a request bears: the admin's, a plain key's owner, or a rollout's by its claims."""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from fulgurite.ids import ROLLOUT_KEY_PREFIX
from services.gateway.errors import Forbidden, Unauthorized
from services.gateway.identity.claims import Claims
from services.gateway.identity.keys import KeyRing

CALL_KEY = (
    "a rollout's `api_key` or one of FULGURITE_API_KEYS (clients send OPENAI_API_KEY or "
    "ANTHROPIC_API_KEY)"
)
ADMIN_KEY = "the admin key (FULGURITE_ADMIN_KEY)"
STATUS_KEY = f"the rollout's `api_key` or {ADMIN_KEY}"
REWARD_KEY = f"the rollout's `reward_key` or {ADMIN_KEY}"
READ_KEY = f"one of the rollout's keys, the key that opened it, or {ADMIN_KEY}"
"""Which key a route wants, as its errors say it."""


class Caller(msgspec.Struct, frozen=True):
    """Whose key it is: `admin`, a plain key's owner, or a rollout by its claims."""

    owner: str
    admin: bool
    claims: Claims | None


class Authenticator:
    """Checks the keys of requests."""

    def __init__(
        self,
        ring: KeyRing,
        admin_key: str | None,
        plain_keys: tuple[str, ...],
        allow_any: bool,
        operations_key: str | None = None,
    ) -> None:
        """Without `operations_key`, whoever reaches the gateway may read its metrics, readiness and
        documentation.
        """
        self._operations = operations_key.encode() if operations_key else None
        self._ring = ring
        self._admin = admin_key.encode() if admin_key else None
        self._plain = frozenset(plain_owner(key) for key in plain_keys)
        self._allow_any = allow_any

    def admit(self, authorization: str | None, now_ms: int, wanted: str = CALL_KEY) -> Caller:
        """Whose key it is. `wanted` names the key that the route needs, for the errors. Raises
        Unauthorized, ExpiredKey.
        """
        key = bearer(authorization)
        if not key:
            raise Unauthorized(f"No API key: send `Authorization: Bearer <key>` with {wanted}.")
        if key.startswith(ROLLOUT_KEY_PREFIX):
            claims = self._ring.verify(key, now_ms)
            return Caller(claims.rollout, admin=False, claims=claims)
        if _same(key, self._admin):
            return Caller("admin", admin=True, claims=None)
        owner = plain_owner(key)
        if owner in self._plain or self._allow_any:
            return Caller(owner, admin=False, claims=None)
        raise Unauthorized(f"Unknown API key: use {wanted}.")

    def is_operator(self, authorization: str | None) -> bool:
        """Whether the key is the operations key or the admin key; without an operations key
        everybody is an operator.
        """
        key = bearer(authorization)
        return self._operations is None or _same(key, self._operations) or _same(key, self._admin)


def require_scope(caller: Caller, rollout_id: str, scope: str, key_name: str) -> None:
    """Raise Forbidden unless the caller's key has this scope for this rollout, or is the admin key.
    `key_name` is the rollout's key that has it.
    """
    claims = caller.claims
    if claims is None:
        if caller.admin:
            return
        raise Forbidden(
            f"A plain agent key may not do this. Use the rollout's {key_name}, or the admin key."
        )
    if scope not in claims.scopes:
        raise Forbidden(
            f"This key may not do this: it is for {' and '.join(claims.scopes)}. Use the "
            f"rollout's {key_name}."
        )
    if claims.rollout != rollout_id:
        raise Forbidden(
            f"This key belongs to rollout {claims.rollout}, not to {rollout_id}. Use that "
            f"rollout's {key_name}.",
            code="foreign_key",
        )


def bearer(authorization: str | None) -> str:
    """The key of an Authorization header; empty if there is none."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _same(key: str, secret: bytes | None) -> bool:
    return secret is not None and hmac.compare_digest(key.encode(), secret)


def plain_owner(key: str) -> str:
    """The owner that a plain key stands for; never the key itself."""
    return hashlib.sha256(key.encode()).hexdigest()
