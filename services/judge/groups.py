"""The groups that wait for a judge, as conversations without their tokens, and how far each
partition may be committed.

A declared group is due when every rollout's last attempt is there, or when its deadline and the
grace are past: in the time of the events, or by the clock where all that there is has been read.
Undeclared traffic is no group and never waits. No offset is given out to be committed before the
group of every episode below it was settled.
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
"""Clocks of the machines that mint ids and write records may differ by this much."""


class JudgedAttempt(msgspec.Struct, frozen=True):
    """One trajectory as it is judged."""

    episode: Episode
    """Without its calls."""
    messages: list[dict[str, Any]]


class Waiting:
    """One group."""

    def __init__(self, group_id: str, partition: int, offset: int) -> None:
        self.group_id = group_id
        self.partition = partition
        self.offset = offset
        """Of its first episode here."""
        self._gathered = GroupState()
        self._messages: dict[str, list[dict[str, Any]]] = {}

    def apply(self, episode: Episode) -> None:
        """An episode of the group; its calls are let go of."""
        # First: what cannot be read must not be held either.
        messages = EpisodeView(episode).messages
        if self._gathered.add(replace(episode, calls=())):
            self._messages[episode.event_id] = messages

    @property
    def is_whole(self) -> bool:
        """Whether nothing that was declared is still to come."""
        return not self._gathered.awaits_episodes()

    def due_at(self, grace_s: float) -> int:
        """Unix milliseconds after which it is judged with what there is."""
        declaration = self._gathered.declaration
        return 0 if declaration is None else declaration.deadline + int(grace_s * 1000)

    def began(self) -> int:
        """No record of the group is older, Unix milliseconds."""
        started = min(episode.started_at for episode in self._gathered.episodes.values())
        return max(0, min(started, minted_at(self.group_id) or started) - _SKEW_MS)

    def revisions(self) -> frozenset[str]:
        """What a verdict is given on."""
        return frozenset(one.episode.event_id for one in self.attempts())

    def attempts(self) -> list[JudgedAttempt]:
        """Every rollout's last attempt, in the order of the declaration."""
        known = members(self._gathered.declaration, self._gathered.episodes.values())
        finals = [member.final for member in known if member.final is not None]
        return [JudgedAttempt(final, self._messages[final.event_id]) for final in finals]


class WaitingRoom:
    """All groups of the partitions that this judge reads."""

    def __init__(self) -> None:
        self._groups: dict[str, Waiting] = {}
        self._unsettled: dict[int, set[Waiting]] = {}
        self._ends: dict[int, int] = {}
        self._times: dict[int, int] = {}

    def pass_by(self, partition: int, offset: int, time_ms: int) -> None:
        """A record was read, of this time; without `apply` nothing is to be done for it."""
        self._ends[partition] = offset + 1
        self._times[partition] = max(time_ms, self._times.get(partition, 0))

    def apply(self, partition: int, offset: int, episode: Episode) -> None:
        """An episode of a declared group."""
        group = self._groups.get(episode.group_id)
        if group is None:
            group = self._groups[episode.group_id] = Waiting(episode.group_id, partition, offset)
            self._unsettled.setdefault(partition, set()).add(group)
        group.apply(episode)

    def leave(self, partition: int) -> None:
        """The partition is another judge's now."""
        self._groups = {
            name: group for name, group in self._groups.items() if group.partition != partition
        }
        self._unsettled.pop(partition, None)
        self._ends.pop(partition, None)
        self._times.pop(partition, None)

    def due(
        self, now_ms: int, grace_s: float, has_more: Callable[[int, int], bool]
    ) -> list[Waiting]:
        """Groups to be judged now; they wait no more, and are unsettled until `settle`. `has_more`:
        a partition, from an offset on.
        """
        now = {
            partition: self._times[partition] if has_more(partition, end) else now_ms
            for partition, end in self._ends.items()
        }
        due = [
            group
            for group in self._groups.values()
            if group.is_whole or group.due_at(grace_s) <= now.get(group.partition, 0)
        ]
        for group in due:
            del self._groups[group.group_id]
        return due

    def settle(self, group: Waiting) -> None:
        """Its verdicts are acknowledged."""
        self._unsettled.get(group.partition, set()).discard(group)

    def committable(self) -> Mapping[int, int]:
        """By partition, the first offset that a restart has to read."""
        return {
            partition: min(
                (group.offset for group in self._unsettled.get(partition, ())), default=end
            )
            for partition, end in self._ends.items()
        }
