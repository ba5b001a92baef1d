"""Scoped keys: an API key that *is* the rollout. `fg-<kid>.<claims>.<signature>`, HMAC-SHA256,
base64url.

Two per rollout: the agent's (`call`, `status`) and the evaluator's (`reward`), so that an agent
with a shell cannot pay itself. Keys are stateless: any gateway with the ring verifies them.
Retiring a `kid` from the ring revokes every key it signed.
"""

from __future__ import annotations

import base64
import hmac
import re

import msgspec

from fulgurite.ids import ROLLOUT_KEY_PREFIX
from services.gateway.errors import ExpiredKey, Unauthorized
from services.gateway.identity.claims import Claims

LEEWAY_MS = 60_000
"""How much the clocks of the machines that mint and verify may differ."""

CALL, STATUS, REWARD = "call", "status", "reward"
AGENT_SCOPES = (CALL, STATUS)
REWARD_SCOPES = (REWARD,)

_REMEMBERED = 10_000
"""A few megabytes of keys."""

_KEY = re.compile(ROLLOUT_KEY_PREFIX + r"([A-Za-z0-9_-]{1,64})\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


class KeyRing:
    """Mints with the first secret, verifies with any."""

    def __init__(self, secrets: dict[str, bytes]) -> None:
        self._secrets = secrets
        self._kid = next(iter(secrets))
        self._verified: dict[str, Claims] = {}
        """Signatures that were checked: an agent shows the same key with every call."""

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """From `kid:secret,kid2:secret`. Raises ValueError that never repeats a secret."""
        secrets: dict[str, bytes] = {}
        for number, entry in enumerate(filter(None, (part.strip() for part in text.split(","))), 1):
            kid, colon, secret = entry.partition(":")
            if not colon or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", kid) or len(secret) < 16:
                raise ValueError(
                    f"FULGURITE_SIGNING_KEYS: entry {number} is not kid:secret with a secret "
                    "of at least 16 characters"
                )
            secrets[kid] = secret.encode()
        if not secrets:
            raise ValueError(
                "FULGURITE_SIGNING_KEYS is empty: set it to kid:secret, for example "
                "k1:$(openssl rand -hex 32)"
            )
        return cls(secrets)

    @property
    def signing_secret(self) -> bytes:
        """The secret that makes new ids and keys."""
        return self._secrets[self._kid]

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Every secret whose ids and keys are still good, the signing one first."""
        return tuple(self._secrets.values())

    def mint(self, claims: Claims) -> str:
        """A key that carries these claims."""
        payload = _b64(msgspec.json.encode(claims))
        signature = _sign(self._secrets[self._kid], self._kid, payload)
        return f"{ROLLOUT_KEY_PREFIX}{self._kid}.{payload}.{_b64(signature)}"

    def verify(self, text: str, now_ms: int) -> Claims:
        """The key's claims. Raises Unauthorized for a key that this ring did not sign, ExpiredKey
        after its expiry and the leeway.
        """
        claims = self._verified.get(text)
        if claims is None:
            if len(self._verified) >= _REMEMBERED:
                self._verified.clear()
            claims = self._verified[text] = self._genuine(text)
        if now_ms > claims.exp + LEEWAY_MS:
            raise ExpiredKey(
                f"The API key of rollout {claims.rollout} expired: its deadline has passed. Start "
                "a new attempt or declare a new group.",
                claims,
            )
        return claims

    def _genuine(self, text: str) -> Claims:
        match = _KEY.fullmatch(text)
        if match is None:
            raise Unauthorized(
                "The API key starts like a rollout's key but is damaged: pass OPENAI_API_KEY "
                "exactly as it was given out."
            )
        kid, payload, signature = match.groups()
        secret = self._secrets.get(kid)
        if secret is None:
            raise Unauthorized(
                f"The API key was signed with key id {kid!r}, which is retired or of another "
                "deployment. Declare new rollouts."
            )
        if not hmac.compare_digest(_b64(_sign(secret, kid, payload)), signature):
            raise Unauthorized(
                "The API key's signature is wrong: pass OPENAI_API_KEY exactly as it was given out."
            )
        return msgspec.json.decode(
            base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=Claims
        )


def _sign(secret: bytes, kid: str, payload: str) -> bytes:
    return hmac.digest(secret, f"{kid}.{payload}".encode(), "sha256")


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
