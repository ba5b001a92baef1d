"""Which calls a version was trained on, and which versions a call was trained into: from
`policy.updates` and `training.ledger`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fulgurite.enums import LedgerTerm, UpdateKind
from fulgurite.events import Event, EventStruct, LedgerEntry, PolicyUpdate
from fulgurite.learning.batching import LEARNER
from services.replay.errors import NotFound


class Behind(EventStruct, frozen=True, kw_only=True):
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
        return tuple(
            sorted(
                {action.partition("#")[0] for actions in self.groups.values() for action in actions}
            )
        )


class CallOutcome(EventStruct, frozen=True, kw_only=True):
    """What became of one call's actions."""

    call_id: str
    trained: dict[str, tuple[str, ...]]
    """Action → versions whose steps trained it: one of its own policy, and one of each that learned
    from a replay.
    """
    other: dict[str, tuple[str, ...]]
    """Action → what else became of it, by policy: `policy: filtered(reason)`, stale or amended."""
    inherited: tuple[str, ...]
    """Later versions that were trained from those."""


class Lineage:
    """The two topics, read once."""

    def __init__(self, updates: Iterable[Event | None], ledger: Iterable[Event | None]) -> None:
        self._updates = {
            u.version: u
            for u in updates
            if isinstance(u, PolicyUpdate) and u.kind is UpdateKind.update and u.version
        }
        self._entries: dict[str, LedgerEntry] = {}
        for entry in ledger:
            if isinstance(entry, LedgerEntry):
                # One that is told again, because its group came back to a revision, is the last
                # word again.
                self._entries.pop(entry.event_id, None)
                self._entries[entry.event_id] = entry

    def version(self, name: str) -> Behind:
        """Raises NotFound."""
        update = self._updates.get(name)
        if update is None:
            newest = next(reversed(self._updates), None)
            raise NotFound(
                f"{name} was never published"
                + (f"; the newest is {newest}" if newest else ": there is no version at all")
            )
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

    def call(self, call_id: str) -> CallOutcome:
        """Raises NotFound: the ledger does not know the call (yet)."""
        trained: dict[str, tuple[str, ...]] = {}
        other: dict[str, tuple[str, ...]] = {}
        for (action, policy), entries in self._said_of(call_id).items():
            # What a learner says stands; what a closing says, until the group is re-closed.
            for entry in [entry for entry in entries if entry.source == LEARNER] or entries[-1:]:
                if entry.term is LedgerTerm.trained:
                    trained[action] = (*trained.get(action, ()), entry.version or "?")
                else:
                    word = f"{policy}: {entry.term}" + (f"({entry.reason})" if entry.reason else "")
                    other[action] = tuple(dict.fromkeys((*other.get(action, ()), word)))
        if not trained and not other:
            raise NotFound(
                f"training.ledger has no action of {call_id}: it is open, or no successful "
                "training call (`fulgurite ledger`)"
            )
        versions = {version for versions in trained.values() for version in versions}
        heirs = (
            v
            for v, update in self._updates.items()
            if v not in versions and versions & set(self._ancestors(update))
        )
        return CallOutcome(call_id=call_id, trained=trained, other=other, inherited=tuple(heirs))

    def _said_of(self, call_id: str) -> dict[tuple[str, str], list[LedgerEntry]]:
        """Entries by action of the call and policy, in the order of the log."""
        said: dict[tuple[str, str], list[LedgerEntry]] = {}
        for entry in self._entries.values():
            for action in entry.actions:
                if action.partition("#")[0] == call_id:
                    said.setdefault((action, entry.policy), []).append(entry)
        return said

    def _ancestors(self, update: PolicyUpdate) -> Iterator[str]:
        seen: set[str] = set()
        parent = update.parent_version
        while parent is not None and parent not in seen:
            yield parent
            seen.add(parent)
            parent = self._updates[parent].parent_version if parent in self._updates else None
