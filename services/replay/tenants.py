"""Recognises the groups of tenants: a gateway marks the ids of a plain key's groups with its owner.

Only who has the gateway's signing secrets can tell whose a group is.
"""

from __future__ import annotations

from fulgurite.events import EventStruct
from fulgurite.ids import is_owned


class Tenants(EventStruct, frozen=True, kw_only=True):
    """Some tenants, by the SHA-256 of their plain keys in hex."""

    owners: frozenset[str] = frozenset()
    secrets: tuple[bytes, ...] = ()
    """All that ids may have been made with."""

    def own(self, group_id: str) -> bool:
        """Whether the group is one of theirs."""
        return any(
            is_owned(group_id, owner, secret) for owner in self.owners for secret in self.secrets
        )
