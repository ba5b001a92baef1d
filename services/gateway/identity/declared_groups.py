"""Declared groups: what a gateway must remember of them because a name or an id alone does not
tell.

It is a cache of `declared` events. Scoped keys need none of it, and plain keys never reach it. When
a group is forgotten (a restart without Redis), the error says what to send instead.
"""

from __future__ import annotations

import msgspec

from fulgurite.enums import Mode
from services.gateway.identity.store import Store

_KEEP_AFTER_S = 24 * 3600
_TEN_YEARS_S = 10 * 365 * 24 * 3600


class GroupEntry(msgspec.Struct, frozen=True):
    """A declared group."""

    mode: Mode
    deadline: int
    agent: str
    max_attempts: int
    rewards: tuple[str, ...] = ()
    """Names that its rewards may have; none: any."""
    alias: str = ""
    served_by: str = ""
    """What answers calls for `alias`, where that is something else."""
    prompt_version: str = ""
    """Version of the prompt of `alias` that its rollouts name."""


class DeclaredGroups:
    """Remembers declared groups until a day after their deadline."""

    def __init__(self, store: Store, started_ms: int = 0) -> None:
        """`started_ms`: when this gateway began to give out completion ids with tags, Unix
        milliseconds.
        """
        self._store = store
        self._started_ms = started_ms
        self._tagged_since: int | None = None

    async def tagged_since(self) -> int:
        """When the first of the gateways that share the store began to give out completion ids with
        tags, Unix milliseconds.
        """
        if self._tagged_since is None:
            known = await self._store.put_new(
                "completions:tagged_since", str(self._started_ms).encode(), _TEN_YEARS_S
            )
            self._tagged_since = self._started_ms if known is None else int(known)
        return self._tagged_since

    async def get(self, group_id: str) -> GroupEntry | None:
        """The group; None if it is forgotten or was never declared."""
        known = await self._store.get(f"group:{group_id}")
        return None if known is None else msgspec.json.decode(known, type=GroupEntry)

    async def put(self, group_id: str, entry: GroupEntry, now_ms: int) -> None:
        """Remember a group."""
        await self._store.put(
            f"group:{group_id}", msgspec.json.encode(entry), _ttl_s(entry, now_ms)
        )

    async def attempt(self, rollout_id: str) -> int:
        """The newest attempt known of a rollout; 0 if none."""
        known = await self._store.get(f"attempt:{rollout_id}")
        return 0 if known is None else int(known)

    async def put_attempt(
        self, rollout_id: str, attempt: int, entry: GroupEntry, now_ms: int
    ) -> None:
        """Remember the newest attempt."""
        await self._store.put(f"attempt:{rollout_id}", str(attempt).encode(), _ttl_s(entry, now_ms))


def _ttl_s(entry: GroupEntry, now_ms: int) -> int:
    return max(0, entry.deadline - now_ms) // 1000 + _KEEP_AFTER_S
