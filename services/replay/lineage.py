"""Finds the calls that a version was trained on, and the versions that were trained on a call.

It reads `policy.updates` and `training.ledger`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fulgurite.enums import LedgerTerm, UpdateKind
from fulgurite.events import Event, EventStruct, LedgerEntry, PolicyUpdate
from fulgurite.learning.batching import LEARNER
from fulgurite.learning.offline import OFFLINE
from services.replay.errors import NotFound


class Behind(EventStruct, frozen=True, kw_only=True):
    """The calls that one version was trained on."""

    version: str
    parent: str | None
    time: int
    topic: str | None
    """The topic it was trained on; None for an export."""
    offline_method: str | None = None
    """`sft` or `dpo`, where it was trained offline."""
    artifact: str | None
    groups: dict[str, tuple[str, ...]]
    """Trained actions (`call_id#choice`) by group."""
    ancestors: tuple[str, ...]
    """Versions it was trained from, the nearest first."""

    @property
    def calls(self) -> tuple[str, ...]:
        """Ids of its calls."""
        return tuple(
            sorted(
                {action.partition("#")[0] for actions in self.groups.values() for action in actions}
            )
        )


class CallOutcome(EventStruct, frozen=True, kw_only=True):
    """The outcomes of one call's actions."""

    call_id: str
    trained: dict[str, tuple[str, ...]]
    """Action → versions whose steps trained it: one of its own policy, one of each policy that was
    trained on a replay, and any number that were trained offline.
    """
    other: dict[str, tuple[str, ...]]
    """Action → its other outcomes by policy, for example `policy: filtered(reason)`."""
    inherited: tuple[str, ...]
    """Later versions that descend from those."""


def _standing(entries: list[LedgerEntry]) -> list[LedgerEntry]:
    """The entries of an action that count: a learner's is final, a closing's counts until the group
    is closed again, and those of offline training stand beside them.
    """
    offline = [entry for entry in entries if entry.source == OFFLINE]
    online = [entry for entry in entries if entry.source != OFFLINE]
    learned = [entry for entry in online if entry.source == LEARNER]
    return [*(learned or online[-1:]), *offline]


class Lineage:
    """Answers from the two topics, which are read once."""

    def __init__(self, updates: Iterable[Event | None], ledger: Iterable[Event | None]) -> None:
        self._updates = {
            u.version: u
            for u in updates
            if isinstance(u, PolicyUpdate) and u.kind is UpdateKind.update and u.version
        }
        self._entries: dict[str, LedgerEntry] = {}
        for entry in ledger:
            if isinstance(entry, LedgerEntry):
                # An entry is repeated when its group comes back to a revision; it then counts as
                # the newest.
                self._entries.pop(entry.event_id, None)
                self._entries[entry.event_id] = entry

    def version(self, name: str) -> Behind:
        """Find the calls behind a version. Raises NotFound."""
        update = self._updates.get(name)
        if update is None:
            newest = next(reversed(self._updates), None)
            raise NotFound(
                f"{name} was never published"
                + (f"; the newest version is {newest}" if newest else ": there are no versions yet")
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
            offline_method=update.offline_method,
            artifact=update.artifact.uri if update.artifact else None,
            groups=dict(sorted(groups.items())),
            ancestors=tuple(self._ancestors(update)),
        )

    def call(self, call_id: str) -> CallOutcome:
        """Find the outcomes of a call. Raises NotFound if the ledger does not have it (yet)."""
        trained: dict[str, tuple[str, ...]] = {}
        other: dict[str, tuple[str, ...]] = {}
        for (action, policy), entries in self._entries_of(call_id).items():
            for entry in _standing(entries):
                if entry.term is LedgerTerm.trained:
                    trained[action] = (*trained.get(action, ()), entry.version or "?")
                else:
                    word = f"{policy}: {entry.term}" + (f"({entry.reason})" if entry.reason else "")
                    other[action] = tuple(dict.fromkeys((*other.get(action, ()), word)))
        if not trained and not other:
            raise NotFound(
                f"training.ledger has no action of {call_id}: it is still open, or it is not a "
                "successful call of mode `train`. See `fulgurite ledger`."
            )
        versions = {version for versions in trained.values() for version in versions}
        heirs = (
            v
            for v, update in self._updates.items()
            if v not in versions and versions & set(self._ancestors(update))
        )
        return CallOutcome(call_id=call_id, trained=trained, other=other, inherited=tuple(heirs))

    def _entries_of(self, call_id: str) -> dict[tuple[str, str], list[LedgerEntry]]:
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
