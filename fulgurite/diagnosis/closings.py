"""Keeps the closings of groups from `trajectories`, without tokens and log-probabilities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec

from fulgurite.diagnosis.facts import BrokenPrefix
from fulgurite.enums import Mode, PrefixBreak
from fulgurite.events import Action, EventStruct, GroupClosed, Tombstone, Trajectory
from fulgurite.groups.group_revisions import RevisionLog
from fulgurite.ids import action_id
from fulgurite.tokens import token_count
from fulgurite.trajectories.prefix_breaks import first_difference

_LEAST = 8
"""Fewest values of a named reward of which it is said that they are all equal."""


class ClosedRow(EventStruct, frozen=True, kw_only=True):
    """A row without its tokens and log-probabilities."""

    row: Trajectory
    tokens: int
    shared_tokens: int
    """Leading tokens that it shares with an earlier row of its episode."""

    @property
    def actions(self) -> dict[str, Action]:
        """Its actions with loss, by id."""
        return {action_id(a.call_id, a.choice): a for a in self.row.actions if a.loss}


class Closing:
    """The closings of one group: rows and tombstones by revision."""

    def __init__(self) -> None:
        self.mode = Mode.train
        self.closed_at = 0
        """Unix milliseconds of the last event."""
        self._log = RevisionLog()
        self._rows: defaultdict[str | None, dict[str, ClosedRow]] = defaultdict(dict)
        self._tombstones: defaultdict[str | None, dict[str, Tombstone]] = defaultdict(dict)
        self._episode: tuple[str, str] = ("", "")
        self._episode_rows: list[bytes] = []
        """Tokens of the rows so far of the episode that is being read."""

    def add(self, event: Trajectory | Tombstone | GroupClosed) -> None:
        """Add the next record of the group."""
        self._log.add(event)
        self.mode, self.closed_at = event.mode, max(self.closed_at, event.event_time)
        if isinstance(event, Tombstone):
            self._tombstones[event.group_revision][event.rollout_id] = event
        elif isinstance(event, Trajectory):
            actions = tuple(msgspec.structs.replace(a, logprobs=None) for a in event.actions)
            self._rows[event.group_revision][event.event_id] = ClosedRow(
                row=msgspec.structs.replace(event, token_ids=b"", actions=actions),
                tokens=token_count(event.token_ids),
                shared_tokens=self._shared(event),
            )

    @property
    def revision(self) -> str | None:
        """The revision that stands."""
        return self._log.current

    @property
    def rows(self) -> tuple[ClosedRow, ...]:
        """The rows of the revision that stands."""
        return tuple(self._rows[self.revision].values())

    @property
    def rewards(self) -> dict[str, float]:
        """The rewards of its scored rollouts."""
        members = [*(one.row for one in self.rows), *self._tombstones[self.revision].values()]
        return {m.rollout_id: m.episode_reward for m in members if m.episode_reward is not None}

    def _shared(self, row: Trajectory) -> int:
        episode = (row.group_revision, row.episode_revision)
        if self._episode != episode:
            self._episode, self._episode_rows = episode, []
        shared = (first_difference(before, row.token_ids) for before in self._episode_rows)
        most = max(shared, default=0)
        self._episode_rows.append(row.token_ids)
        return most


def one_valued_rewards(rows: Iterable[ClosedRow]) -> dict[str, float]:
    """Named rewards that had one value in many rollouts, where others had several."""
    values: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for one in rows:
        for name, value in one.row.rewards.items():
            values[name][one.row.rollout_id] = value
    single = {
        name: next(iter(found.values()))
        for name, found in sorted(values.items())
        if len(found) >= _LEAST and len(set(found.values())) == 1
    }
    return single if len(single) < len(values) else {}


def broken_prefixes(rows: Iterable[ClosedRow]) -> Iterator[BrokenPrefix]:
    """The rows that broke off, by kind, with the place of the first of each."""
    by_kind: defaultdict[PrefixBreak, list[ClosedRow]] = defaultdict(list)
    for one in rows:
        if one.row.break_kind is not None:
            by_kind[one.row.break_kind].append(one)
    for kind, broken in sorted(by_kind.items()):
        first = broken[0]
        # Actions without loss are context that other rows have as well.
        actions = sorted(first.row.actions, key=lambda action: not action.loss)
        yield BrokenPrefix(
            kind=kind,
            rows=len(broken),
            rollout_id=first.row.rollout_id,
            call_id=actions[0].call_id if actions else "",
            shared_tokens=first.shared_tokens,
        )
