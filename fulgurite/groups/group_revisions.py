"""Group revisions: what a closing writes under one, and which of those in the log is whole.

A revision is the hash of all that is written under it. So the same episodes and rewards give the
same revision and the same bytes, whenever each of them came; and what changes nothing in the rows
(a reward told twice, one of the same value, one that does not count) makes no new revision. The
newest revision of a group is the last whole one in `trajectories`, in the order of the log.
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
    """What one closing writes, in order, under its revision and with the ids that derive
    from it.
    """
    revision = derive_id(RULE, hashlib.sha256(_canonical.encode(outputs)).hexdigest())
    return tuple(_stamped(output, revision) for output in outputs)


def revision_of(outputs: Iterable[Output]) -> str | None:
    """The revision of what one closing writes; None for nothing."""
    return next((output.group_revision for output in outputs), None)


class Written:
    """What the log holds of one group's closings, taken in its order; of ledger entries the order
    does not matter.

    A revision that is begun after another is written anew, even if it had been written before:
    rewards that are taken back and given again lead back to it. Rows that come again within one
    writing say nothing new.
    """

    def __init__(self) -> None:
        self.newest: str | None = None
        """The last revision of which every member has all its rows or its tombstone."""
        self._last: str | None = None
        self._rows: set[str] = set()
        """Of the writing that was begun last."""
        self._left: dict[str, int] = {}
        """How many of its rows each member lacks."""
        self._is_whole = False
        self._whole: set[str] = set()
        self._entries: dict[str, set[str]] = {}

    def take(self, output: Output) -> None:
        """The next record."""
        revision = output.group_revision
        if revision is None:
            return
        if isinstance(output, LedgerEntry):
            self._entries.setdefault(revision, set()).add(output.event_id)
            return
        if revision != self._last:
            self._last, self._rows, self._left, self._is_whole = revision, set(), {}, False
        if output.event_id in self._rows:
            return
        self._rows.add(output.event_id)
        rows = 1 if isinstance(output, Tombstone) else output.rows_in_episode
        self._left[output.rollout_id] = self._left.get(output.rollout_id, rows) - 1
        if len(self._left) == output.group_size and not any(self._left.values()):
            self._is_whole = True
            self._whole.add(revision)
            self.newest = revision

    @property
    def current(self) -> str | None:
        """The revision that counts: the newest whole one, before any is whole the last that was
        begun.
        """
        return self.newest or self._last

    @property
    def standing(self) -> str | None:
        """The revision that need not be written again; `UNSEALED` where another was begun after the
        newest, None where none is whole.
        """
        return self.newest if self._is_whole or self.newest is None else UNSEALED

    def begun(self) -> set[str]:
        """Ids of what need not be written again of a closing that is not whole."""
        entries = {
            event_id
            for revision, ids in self._entries.items()
            if revision not in self._whole
            for event_id in ids
        }
        return entries if self._is_whole else entries | self._rows


def _stamped(output: Output, revision: str) -> Output:
    if isinstance(output, Trajectory):
        name = derive_id("trajectory", revision, output.episode_revision, output.row_index)
        return msgspec.structs.replace(
            output, event_id=name, trajectory_id=name, group_revision=revision
        )
    if isinstance(output, Tombstone):
        return msgspec.structs.replace(
            output,
            event_id=derive_id("tombstone", revision, output.rollout_id),
            group_revision=revision,
        )
    name = derive_id("filtered", revision, output.policy, output.reason or "")
    return msgspec.structs.replace(output, event_id=name, group_revision=revision)
