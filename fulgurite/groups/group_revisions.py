"""Derives group revisions, and finds the newest complete one in the log.

A revision is the hash of everything written under it. So the same episodes and rewards give the
same revision and the same bytes, in any order of arrival. A reward that changes no row (repeated,
of the same value, or not counted) makes no new revision. The newest revision of a group is the last
complete one in `trajectories`, in log order.

The last record of a closing is its `GroupClosed`, which names everything that was written and its
inputs. Logs from before December 2026 have none; there a revision is complete once every member has
all its rows or its tombstone. The next release no longer reads such logs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from fulgurite.events import (
    Action,
    AgentReward,
    Episode,
    GroupClosed,
    LedgerEntry,
    Tombstone,
    Trajectory,
)
from fulgurite.ids import derive_id

RULE = "close-2"
"""Version of the closing rule; it is part of every group revision."""

SOURCE = "rewarder"
"""The source of a closing's ledger entries."""

UNASSIGNED = ""
"""Stands for a revision, and for ids derived from it, before they are known."""

Output = Trajectory | Tombstone | LedgerEntry
"""An event that a revision is the hash of."""

ClosingRecord = Output | GroupClosed
"""An event that a closing writes."""

_canonical = msgspec.msgpack.Encoder(order="deterministic")


def _without(kind: type[msgspec.Struct], later: str) -> type[msgspec.Struct]:
    """The kind without a field that came later, so that the same closing has the same revision in
    logs of earlier releases.
    """
    names = [name for name in kind.__struct_fields__ if name != later]
    return msgspec.defstruct(f"_Hashed{kind.__name__}", names)


_HASHED: dict[type, type[msgspec.Struct]] = {
    Action: _without(Action, "turn"),
    Trajectory: _without(Trajectory, "alias"),
    Tombstone: _without(Tombstone, "alias"),
}


def with_revision(outputs: Sequence[Output]) -> tuple[Output, ...]:
    """Fill the revision of a closing, and the ids derived from it, into its events."""
    hashed = [_hashed(output) for output in outputs]
    revision = derive_id(RULE, hashlib.sha256(_canonical.encode(hashed)).hexdigest())
    return tuple(_with_ids(output, revision) for output in outputs)


def _hashed(output: Output | Action) -> msgspec.Struct:
    kind = _HASHED.get(type(output))
    if kind is None:
        return output
    fields = {name: getattr(output, name) for name in kind.__struct_fields__}
    if isinstance(output, Trajectory):
        fields["actions"] = [_hashed(action) for action in output.actions]
    return kind(**fields)


def revision_of(outputs: Iterable[Output]) -> str | None:
    """The revision of a closing's events; None if there are none."""
    return next((output.group_revision for output in outputs), None)


def group_closed(
    outputs: Sequence[Output],
    episodes: Iterable[Episode],
    rewards: Iterable[AgentReward],
    supersedes: str | None,
) -> GroupClosed | None:
    """Make the last record of a closing; None for a closing that writes nothing.

    `outputs`: made by `fulgurite.groups.closing.close_group` from these episodes and rewards.
    `supersedes`: the revision of the group's last `GroupClosed` in the log.
    """
    rows = [output for output in outputs if not isinstance(output, LedgerEntry)]
    if not rows:
        return None
    first = rows[0]
    episode_revisions = tuple(sorted(episode.revision for episode in episodes))
    reward_ids = tuple(sorted(reward.event_id for reward in rewards))
    return GroupClosed(
        event_id=derive_id(
            "group_closed",
            first.group_revision,
            supersedes or "",
            *episode_revisions,
            "",
            *reward_ids,
        ),
        event_time=first.event_time,
        group_id=first.group_id,
        mode=first.mode,
        group_revision=first.group_revision,
        supersedes=supersedes,
        episode_revisions=episode_revisions,
        reward_ids=reward_ids,
        row_ids=tuple(row.event_id for row in rows),
        entry_ids=tuple(output.event_id for output in outputs if isinstance(output, LedgerEntry)),
    )


class RevisionLog:
    """The closings of one group in the log. Add records in log order; ledger entries in any order.

    A revision may be written again after another one, when rewards change back. Repeated rows
    within one writing change nothing.
    """

    def __init__(self) -> None:
        self.newest: str | None = None
        """The last complete revision."""
        self.closed: str | None = None
        """The revision of the last `GroupClosed`."""
        self._last: str | None = None
        self._rows: set[str] = set()
        """Ids of the rows of the last writing."""
        self._left: dict[str, int] = {}
        """Number of rows that each member still lacks."""
        self._is_closed = False
        """Whether the last writing has its `GroupClosed`."""
        self._complete_revisions: set[str] = set()
        self._entries: dict[str, set[str]] = {}

    def add(self, record: ClosingRecord) -> None:
        """Add the next record of the log."""
        revision = record.group_revision
        if revision is None:
            return
        if isinstance(record, LedgerEntry):
            self._entries.setdefault(revision, set()).add(record.event_id)
            return
        if revision != self._last:
            self._last, self._rows, self._left, self._is_closed = revision, set(), {}, False
        if isinstance(record, GroupClosed):
            self._is_closed = True
            self.closed = revision
            self._complete(revision)
        elif record.event_id not in self._rows:
            self._rows.add(record.event_id)
            if self._was_last_row(record):
                self._complete(revision)

    def _complete(self, revision: str) -> None:
        self._complete_revisions.add(revision)
        self.newest = revision

    def _was_last_row(self, row: Trajectory | Tombstone) -> bool:
        """For logs without `GroupClosed`: whether every member now has its rows or tombstone."""
        rows = 1 if isinstance(row, Tombstone) else row.rows_in_episode
        self._left[row.rollout_id] = self._left.get(row.rollout_id, rows) - 1
        return len(self._left) == row.group_size and not any(self._left.values())

    @property
    def current(self) -> str | None:
        """The revision that counts: the newest complete one, else the last that was begun."""
        return self.newest or self._last

    @property
    def standing(self) -> str | None:
        """The revision that need not be written again: the newest, if its `GroupClosed` is last.

        `UNASSIGNED` if that is still to be written or another revision was begun since; None if no
        revision is complete.
        """
        return self.newest if self._is_closed or self.newest is None else UNASSIGNED

    def begun(self) -> set[str]:
        """Ids of events that an unfinished closing need not write again."""
        finished = (
            self._complete_revisions if self._is_closed else self._complete_revisions - {self._last}
        )
        entries = {
            event_id
            for revision, ids in self._entries.items()
            if revision not in finished
            for event_id in ids
        }
        return entries if self._is_closed else entries | self._rows


def _with_ids(output: Output, revision: str) -> Output:
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
