"""Holds the groups that wait for a judge, and decides how far each partition may be committed.

Groups are kept as conversations, without tokens. A declared group is due when every rollout's last
attempt is there, or when its deadline and the grace have passed: by the time of the events, or by
the clock once the partition is read to its end. Undeclared traffic is not judged, but for a judge
of live traffic: there every episode is a group, due some time after its end. An offset is
committed only when the groups of all episodes below it are done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from fulgurite.episodes.view import EpisodeView
from fulgurite.events import Episode
from fulgurite.groups.closing import members
from fulgurite.groups.group_state import GroupState
from fulgurite.ids import minted_at

_SKEW_MS = 60_000
"""How far the clocks of machines that make ids and write records may differ."""


class JudgedAttempt(msgspec.Struct, frozen=True):
    """One trajectory to be judged."""

    episode: Episode
    """Without its calls."""
    messages: list[dict[str, Any]]


class Waiting:
    """A group that waits to be judged."""

    def __init__(
        self, group_id: str, partition: int, offset: int, live_wait_s: float | None = None
    ) -> None:
        """`live_wait_s`: of live traffic, seconds after its end in which somebody may vote."""
        self.group_id = group_id
        self._live_wait_s = live_wait_s
        self.partition = partition
        self.offset = offset
        """Offset of the first episode of the group that was read."""
        self._state = GroupState()
        self._messages: dict[str, list[dict[str, Any]]] = {}

    def apply(self, episode: Episode) -> None:
        """Add an episode of the group. Of its calls, only the messages are kept."""
        # First, so that an episode that cannot be read is not added.
        messages = EpisodeView(episode).messages
        if self._state.add(replace(episode, calls=())):
            self._messages[episode.event_id] = messages

    @property
    def is_complete(self) -> bool:
        """Whether every declared rollout's last attempt is here. Live traffic has always more."""
        return self._live_wait_s is None and not self._state.awaits_episodes()

    def due_at(self, grace_s: float) -> int:
        """When the group is judged with the episodes it has, in Unix milliseconds."""
        declaration = self._state.declaration
        if self._live_wait_s is not None:
            ended = max(episode.ended_at for episode in self._state.episodes.values())
            return ended + int(self._live_wait_s * 1000)
        return 0 if declaration is None else declaration.deadline + int(grace_s * 1000)

    def began(self) -> int:
        """A time before the group's first record, in Unix milliseconds."""
        started = min(episode.started_at for episode in self._state.episodes.values())
        return max(0, min(started, minted_at(self.group_id) or started) - _SKEW_MS)

    def revisions(self) -> frozenset[str]:
        """The episode revisions that are compared."""
        return frozenset(one.episode.event_id for one in self.attempts())

    def attempts(self) -> list[JudgedAttempt]:
        """Every rollout's last attempt, in the order of the declaration."""
        known = members(self._state.declaration, self._state.episodes.values())
        finals = [member.final for member in known if member.final is not None]
        return [JudgedAttempt(final, self._messages[final.event_id]) for final in finals]


class WaitingRoom:
    """The waiting groups of the partitions that this judge reads."""

    def __init__(self, live_wait_s: float | None = None) -> None:
        """`live_wait_s`: see `Waiting`."""
        self._live_wait_s = live_wait_s
        self._groups: dict[str, Waiting] = {}
        self._unfinished: dict[int, set[Waiting]] = {}
        self._ends: dict[int, int] = {}
        self._times: dict[int, int] = {}

    def pass_by(self, partition: int, offset: int, time_ms: int) -> None:
        """Note that the record at `offset`, written at `time_ms`, was read."""
        self._ends[partition] = offset + 1
        self._times[partition] = max(time_ms, self._times.get(partition, 0))

    def apply(self, partition: int, offset: int, episode: Episode) -> None:
        """Add an episode of a declared group."""
        group = self._groups.get(episode.group_id)
        if group is None:
            group = self._groups[episode.group_id] = Waiting(
                episode.group_id, partition, offset, self._live_wait_s
            )
            self._unfinished.setdefault(partition, set()).add(group)
        group.apply(episode)

    def leave(self, partition: int) -> None:
        """Forget a partition that another judge has now."""
        self._groups = {
            name: group for name, group in self._groups.items() if group.partition != partition
        }
        self._unfinished.pop(partition, None)
        self._ends.pop(partition, None)
        self._times.pop(partition, None)

    def due(
        self, now_ms: int, grace_s: float, has_more: Callable[[int, int], bool]
    ) -> list[Waiting]:
        """Remove and return the groups to be judged now; call `mark_done` for each when it is done.

        `has_more(partition, offset)`: whether the partition has records from that offset on.
        """
        now = {
            partition: self._times[partition] if has_more(partition, end) else now_ms
            for partition, end in self._ends.items()
        }
        due = [
            group
            for group in self._groups.values()
            if group.is_complete or group.due_at(grace_s) <= now.get(group.partition, 0)
        ]
        for group in due:
            del self._groups[group.group_id]
        return due

    def mark_done(self, group: Waiting) -> None:
        """Note that the group's rewards are acknowledged."""
        self._unfinished.get(group.partition, set()).discard(group)

    def committable(self) -> Mapping[int, int]:
        """By partition, the first offset that a restart has to read."""
        return {
            partition: min(
                (group.offset for group in self._unfinished.get(partition, ())), default=end
            )
            for partition, end in self._ends.items()
        }
