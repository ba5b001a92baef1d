"""Group revisions: what a closing writes under one, and which of those in the log is whole.

A revision is the hash of all that is written under it. So the same episodes and rewards give the same revision and the same bytes,
whenever each of them came; and what changes nothing in the rows (a reward told twice, one of the same value, one that does not count)
makes no new revision. The newest revision of a group is the last whole one in `trajectories`, in the order of the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from fulgurite.events import LedgerEntry, Tombstone, Trajectory
from fulgurite.ids import derive_id

RULE = "close-2"
"""Version of the rule by which groups are closed; it is part of every group revision."""

SOURCE = "rewarder"
"""Who writes ledger entries of a closing."""

UNSEALED = ""
"""Stands where the revision, and the ids that derive from it, will be."""

Output = Trajectory | Tombstone | LedgerEntry

_canonical = msgspec.msgpack.Encoder(order="deterministic")


def sealed(outputs: Sequence[Output]) -> tuple[Output, ...]:
    """What one closing writes, in order, under its revision and with the ids that derive from it."""
    revision = derive_id(RULE, hashlib.sha256(_canonical.encode(outputs)).hexdigest())
    return tuple(_stamped(output, revision) for output in outputs)


def revision_of(outputs: Iterable[Output]) -> str | None:
    """The revision of what one closing writes; None for nothing."""
    return next((output.group_revision for output in outputs), None)


class Written:
    """What the log holds of one group's closings, taken in its order."""

    def __init__(self) -> None:
        self.newest: str | None = None
        """The last revision of which every member has all its rows or its tombstone."""
        self._last: str | None = None
        self._whole: set[str] = set()
        self._left: dict[str, dict[str, int]] = {}
        self._ids: dict[str, set[str]] = {}

    def take(self, output: Output) -> None:
        """The next record; one that comes again says nothing new."""
        revision = output.group_revision
        if revision is None or output.event_id in self._ids.setdefault(revision, set()):
            return
        self._ids[revision].add(output.event_id)
        if isinstance(output, LedgerEntry):
            return
        self._last = revision
        left = self._left.setdefault(revision, {})
        rows = 1 if isinstance(output, Tombstone) else output.rows_in_episode
        left[output.rollout_id] = left.get(output.rollout_id, rows) - 1
        if len(left) == output.group_size and not any(left.values()):
            self._whole.add(revision)
            self.newest = revision

    @property
    def current(self) -> str | None:
        """The revision that counts: the newest whole one, before any is whole the last that was begun."""
        return self.newest or self._last

    def begun(self) -> set[str]:
        """Ids of what was written of closings that are not whole: they are not written again."""
        return {event_id for revision, ids in self._ids.items() if revision not in self._whole for event_id in ids}


def _stamped(output: Output, revision: str) -> Output:
    if isinstance(output, Trajectory):
        name = derive_id("trajectory", revision, output.episode_revision, output.row_index)
        return msgspec.structs.replace(output, event_id=name, trajectory_id=name, group_revision=revision)
    if isinstance(output, Tombstone):
        return msgspec.structs.replace(output, event_id=derive_id("tombstone", revision, output.rollout_id), group_revision=revision)
    name = derive_id("filtered", revision, output.policy, output.reason or "")
    return msgspec.structs.replace(output, event_id=name, group_revision=revision)
