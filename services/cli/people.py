"""Parses whom a command leaves out of training: people by subject, tenants by their key's hash."""

from __future__ import annotations

import re
from collections.abc import Sequence

from services.gateway.identity.keys import KeyRing
from services.gateway.settings import GatewaySettings
from services.replay.errors import BadArgument
from services.replay.tenants import Tenants

_SUBJECT = re.compile(r"su_[0-9a-z]{26}")
_OWNER = re.compile(r"[0-9a-f]{64}")


def parse_people(texts: Sequence[str]) -> tuple[frozenset[str], Tenants]:
    """Parse subjects `su_...`, and tenants by their plain keys' SHA-256. Raises BadArgument.

    Tenants need FULGURITE_SIGNING_KEYS, as the gateway has it.
    """
    for text in texts:
        if not (_SUBJECT.fullmatch(text) or _OWNER.fullmatch(text)):
            raise BadArgument(
                f"--without {text!r} is neither a subject nor a tenant. A subject is what a "
                "person's calls have as `subject`: su_ and 26 characters "
                "(docs/explanation/identity.md says how to find it). A tenant is the SHA-256 of "
                'its plain key: printf %s "$KEY" | sha256sum'
            )
    owners = frozenset(text for text in texts if _OWNER.fullmatch(text))
    return frozenset(texts) - owners, _tenants(owners)


def _tenants(owners: frozenset[str]) -> Tenants:
    if not owners:
        return Tenants()
    try:
        settings = GatewaySettings()  # pyright: ignore[reportCallIssue]
        ring = KeyRing.parse(settings.signing_keys.get_secret_value())
    except ValueError as error:
        raise BadArgument(
            "--without with a tenant needs FULGURITE_SIGNING_KEYS as the gateway has it, because "
            f"group ids are marked with it: {error}"
        ) from error
    return Tenants(owners=owners, secrets=ring.secrets)
