"""Which calls a version was trained on, and which versions a call was trained into: from `policy.updates` and `training.ledger`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fulgurite.events import Event, LedgerEntry, PolicyUpdate, Record
from fulgurite.kinds import LedgerTerm, UpdateKind
from services.replay.errors import NotFound


class Behind(Record, frozen=True, kw_only=True):
    """What is behind one version."""

    version: str
    parent: str | None
    time: int
    topic: str | None
    """Topic it was trained on."""
    artifact: str | None
    groups: dict[str, tuple[str, ...]]
    """Trained actions, `call_id#choice`, by group."""
    ancestors: tuple[str, ...]
    """Versions it was trained from, the nearest first."""

    @property
    def calls(self) -> tuple[str, ...]:
        """Its calls."""
        return tuple(sorted({action.partition("#")[0] for actions in self.groups.values() for action in actions}))


class Fate(Record, frozen=True, kw_only=True):
    """What became of one call's actions."""

    call_id: str
    trained: dict[str, str]
    """Action → version whose step trained it."""
    other: dict[str, str]
    """Action → filtered(reason), stale or amended."""
    inherited: tuple[str, ...]
    """Later versions that were trained from those."""


class Lineage:
    """The two topics, read once."""

    def __init__(self, updates: Iterable[Event | None], ledger: Iterable[Event | None]) -> None:
        self._updates = {u.version: u for u in updates if isinstance(u, PolicyUpdate) and u.kind is UpdateKind.update and u.version}
        self._entries = {entry.event_id: entry for entry in ledger if isinstance(entry, LedgerEntry)}

    def version(self, name: str) -> Behind:
        """Raises NotFound."""
        update = self._updates.get(name)
        if update is None:
            newest = next(reversed(self._updates), None)
            raise NotFound(f"{name} was never published" + (f"; the newest is {newest}" if newest else ": there is no version at all"))
        groups: dict[str, tuple[str, ...]] = {}
        for entry in self._entries.values():
            if entry.term is LedgerTerm.trained and entry.version == name:
                groups[entry.group_id] = (*groups.get(entry.group_id, ()), *entry.actions)
        return Behind(
            version=name,
            parent=update.parent_version,
            time=update.event_time,
            topic=update.topic,
            artifact=update.artifact.uri if update.artifact else None,
            groups=dict(sorted(groups.items())),
            ancestors=tuple(self._ancestors(update)),
        )

    def call(self, call_id: str) -> Fate:
        """Raises NotFound: the ledger does not know the call (yet)."""
        trained: dict[str, str] = {}
        other: dict[str, str] = {}
        for entry in self._entries.values():
            for action in entry.actions:
                if action.partition("#")[0] != call_id:
                    continue
                if entry.term is LedgerTerm.trained:
                    trained[action] = entry.version or "?"
                else:
                    other[action] = f"{entry.term}({entry.reason})" if entry.reason else str(entry.term)
        if not trained and not other:
            raise NotFound(f"training.ledger has no action of {call_id}: it is open, or no successful training call (`fulgurite ledger`)")
        versions = set(trained.values())
        heirs = (v for v, update in self._updates.items() if v not in versions and versions & set(self._ancestors(update)))
        return Fate(call_id=call_id, trained=trained, other=other, inherited=tuple(heirs))

    def _ancestors(self, update: PolicyUpdate) -> Iterator[str]:
        seen: set[str] = set()
        parent = update.parent_version
        while parent is not None and parent not in seen:
            yield parent
            seen.add(parent)
            parent = self._updates[parent].parent_version if parent in self._updates else None
