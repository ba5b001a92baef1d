"""Derives group revisions, and finds the newest complete one in the log.

A revision is the hash of all that is written under it. So the same episodes and rewards give the
same revision and the same bytes, whenever each of them came; and what changes nothing in the rows
(a reward told twice, one of the same value, one that does not count) makes no new revision. The
newest revision of a group is the last whole one in `trajectories`, in the order of the log.

The last record of a closing is its `GroupClosed`: it names all that was written and what it was
made of. Logs of before December 2026 have none; there a revision is whole once every member has all
its rows or its tombstone. The next release no longer reads them so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from fulgurite.events import AgentReward, Episode, GroupClosed, LedgerEntry, Tombstone, Trajectory
from fulgurite.ids import derive_id

RULE = "close-2"
"""Version of the rule by which groups are closed; it is part of every group revision."""

SOURCE = "rewarder"
"""Who writes ledger entries of a closing."""

UNASSIGNED = ""
"""Stands where the revision, and the ids that derive from it, will be."""

Output = Trajectory | Tombstone | LedgerEntry
"""What a revision is the hash of."""

ClosingRecord = Output | GroupClosed
"""What a closing writes."""

_canonical = msgspec.msgpack.Encoder(order="deterministic")


def with_revision(outputs: Sequence[Output]) -> tuple[Output, ...]:
    """What one closing writes, in order, under its revision and with the ids that derive
    from it.
    """
    revision = derive_id(RULE, hashlib.sha256(_canonical.encode(outputs)).hexdigest())
    return tuple(_with_ids(output, revision) for output in outputs)


def revision_of(outputs: Iterable[Output]) -> str | None:
    """The revision of what one closing writes; None for nothing."""
    return next((output.group_revision for output in outputs), None)


def group_closed(
    outputs: Sequence[Output],
    episodes: Iterable[Episode],
    rewards: Iterable[AgentReward],
    supersedes: str | None,
) -> GroupClosed | None:
    """The last record of a closing; None for a closing that writes nothing.

    `outputs`: what `fulgurite.groups.closing.close_group` made of these episodes and rewards.
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
    """What the log holds of one group's closings, taken in its order; of ledger entries the order
    does not matter.

    A revision that is begun after another is written anew, even if it had been written before:
    rewards that are taken back and given again lead back to it. Rows that come again within one
    writing say nothing new.
    """

    def __init__(self) -> None:
        self.newest: str | None = None
        """The last whole revision."""
        self.closed: str | None = None
        """The revision of the last `GroupClosed`."""
        self._last: str | None = None
        self._rows: set[str] = set()
        """Of the writing that was begun last."""
        self._left: dict[str, int] = {}
        """How many of its rows each member lacks."""
        self._is_closed = False
        """Whether the writing that was begun last has its `GroupClosed`."""
        self._whole: set[str] = set()
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
        self._whole.add(revision)
        self.newest = revision

    def _was_last_row(self, row: Trajectory | Tombstone) -> bool:
        """Whether every member now has all its rows or its tombstone, for logs without
        `GroupClosed`.
        """
        rows = 1 if isinstance(row, Tombstone) else row.rows_in_episode
        self._left[row.rollout_id] = self._left.get(row.rollout_id, rows) - 1
        return len(self._left) == row.group_size and not any(self._left.values())

    @property
    def current(self) -> str | None:
        """The revision that counts: the newest whole one, before any is whole the last that was
        begun.
        """
        return self.newest or self._last

    @property
    def standing(self) -> str | None:
        """The revision that need not be written again: the newest, if its `GroupClosed` is the last
        record.

        `UNASSIGNED` where that is still to be written, or another revision was begun since; None
        where no revision is whole.
        """
        return self.newest if self._is_closed or self.newest is None else UNASSIGNED

    def begun(self) -> set[str]:
        """Ids of what need not be written again of a closing that has no `GroupClosed` yet."""
        finished = self._whole if self._is_closed else self._whole - {self._last}
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
