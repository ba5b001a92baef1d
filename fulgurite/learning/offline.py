"""Chooses what of a recording is trained offline: the best episodes of each group (SFT), or pairs
of a better and a worse one (DPO).

Online an action is trained at most once, whatever becomes of its group later. Offline the newest
revision of a group counts, with every reward that came late, and an action may be trained as often
as somebody asks for it. The ledger tells the two apart by the source of an entry.

Of an episode those actions are trained that carry loss and are not masked. How they were sampled
does not matter here, and neither does the version that generated them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from fulgurite.enums import FilterReason, LedgerTerm, Mode
from fulgurite.events import Action, EventStruct, GroupClosed, LedgerEntry, Tombstone, Trajectory
from fulgurite.groups.group_revisions import RevisionLog
from fulgurite.groups.rewards import LARGEST_TOTAL, is_bounded
from fulgurite.ids import action_id, derive_id
from fulgurite.tokens import token_count
from fulgurite.versions import Version

OFFLINE = "offline"
"""The source of ledger entries of offline training."""

_TOKEN_BYTES = 4


class LeftOut(StrEnum):
    """Why an episode is not trained."""

    not_closed = "not_closed"
    """Its group is not completely in the log."""
    no_reward = "no_reward"
    """It has no reward, or one that is too large or not finite."""
    no_tokens = "no_tokens"
    """None of its actions may be trained: they are masked, or have no tokens."""
    oversized = "oversized"
    """A row of it is longer than the trainer takes."""
    not_best = "not_best"
    """Its reward is not among the best of its group, or below the least one."""
    no_pair = "no_pair"
    """No other episode of its group has the same beginning and a reward that differs enough."""


class Span(EventStruct, frozen=True, kw_only=True):
    """An action that may be trained, within a row."""

    action: str
    """`call_id#choice`."""
    start: int
    end: int


class RecordedRow(EventStruct, frozen=True, kw_only=True):
    """A row with at least one action that may be trained."""

    token_ids: bytes
    spans: tuple[Span, ...]


class RecordedEpisode(EventStruct, frozen=True, kw_only=True):
    """A rewarded episode."""

    group_id: str
    group_revision: str
    rollout_id: str
    reward: float
    context: bytes
    """Its beginning: the packed tokens before its first action."""
    rows: tuple[RecordedRow, ...]

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions that are trained with it."""
        return tuple(span.action for row in self.rows for span in row.spans)


class RecordedGroup(EventStruct, frozen=True, kw_only=True):
    """The newest revision of a group."""

    group_id: str
    started_at: int
    rewards: tuple[float, ...]
    """Of all its scored members, trained or not."""
    episodes: tuple[RecordedEpisode, ...]


class Pair(EventStruct, frozen=True, kw_only=True):
    """Two episodes of a group that begin alike."""

    chosen: RecordedEpisode
    rejected: RecordedEpisode


class Window(EventStruct, frozen=True, kw_only=True):
    """Which rows of a recording are looked at."""

    policy: str
    """The policy whose rows they are."""
    modes: frozenset[Mode] = frozenset({Mode.train})
    since_ms: int | None = None
    """Groups that began at this time or later, Unix milliseconds."""
    until_ms: int | None = None
    """Groups that began before this time."""
    closed_only: bool = True
    """Whether a group must be complete; an export may have some of its episodes only."""
    max_row_tokens: int = 4096


class _Records(msgspec.Struct):
    """What was read of a group."""

    revisions: RevisionLog
    started_at: int
    members: dict[str, dict[str, Trajectory | Tombstone]]
    """Rows and tombstones by revision and event id."""

    def has(self, closed: GroupClosed) -> bool:
        """Whether all rows and tombstones of a closing are there."""
        return self.members.get(closed.group_revision, {}).keys() >= set(closed.row_ids)


class Recording:
    """Collects the records of a topic of trajectories. Add them in log order."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._records: dict[str, _Records] = {}
        self.left_out: Counter[LeftOut] = Counter()
        """Episodes that cannot be trained, after `groups`."""

    def add(self, event: Trajectory | Tombstone | GroupClosed) -> None:
        """Add a record."""
        if event.mode not in self._window.modes:
            return
        records = self._records.get(event.group_id)
        if isinstance(event, GroupClosed):
            # Retention may have removed some of what it names.
            if records is not None and records.has(event):
                records.revisions.add(event)
                _forget_older(records, event.group_revision)
            return
        if not self._is_in_time(event.group_started_at):
            return
        if records is None:
            records = self._records[event.group_id] = _Records(
                RevisionLog(), event.group_started_at, {}
            )
        records.revisions.add(event)
        records.members.setdefault(event.group_revision, {})[event.event_id] = event
        _forget_older(records, event.group_revision)

    def groups(self) -> tuple[RecordedGroup, ...]:
        """The groups that have an episode to train, oldest start first."""
        self.left_out.clear()
        made = [
            self._group(group_id, records)
            for group_id, records in sorted(
                self._records.items(), key=lambda item: (item[1].started_at, item[0])
            )
        ]
        return tuple(group for group in made if group is not None and group.episodes)

    def _is_in_time(self, started_at: int) -> bool:
        since, until = self._window.since_ms, self._window.until_ms
        return (since is None or started_at >= since) and (until is None or started_at < until)

    def _group(self, group_id: str, records: _Records) -> RecordedGroup | None:
        revision = records.revisions.newest
        if revision is None and not self._window.closed_only:
            revision = records.revisions.current
        if revision is None:
            rollouts = {
                one.rollout_id for held in records.members.values() for one in held.values()
            }
            self.left_out[LeftOut.not_closed] += len(rollouts)
            return None
        members = records.members[revision].values()
        rows_of: dict[str, list[Trajectory]] = {}
        for member in members:
            if isinstance(member, Trajectory) and member.policy == self._window.policy:
                rows_of.setdefault(member.rollout_id, []).append(member)
        rewards = {member.rollout_id: _reward_of(member) for member in members}
        episodes: list[RecordedEpisode] = []
        for _, rows in sorted(rows_of.items()):
            episode = self._episode(rows)
            if isinstance(episode, LeftOut):
                self.left_out[episode] += 1
            else:
                episodes.append(episode)
        return RecordedGroup(
            group_id=group_id,
            started_at=records.started_at,
            rewards=tuple(reward for reward in rewards.values() if reward is not None),
            episodes=tuple(episodes),
        )

    def _episode(self, rows: list[Trajectory]) -> RecordedEpisode | LeftOut:
        rows = sorted(rows, key=lambda row: row.row_index)
        first = rows[0]
        reward = _reward_of(first)
        if reward is None:
            return LeftOut.no_reward
        if any(token_count(row.token_ids) > self._window.max_row_tokens for row in rows):
            return LeftOut.oversized
        recorded = [
            RecordedRow(token_ids=row.token_ids, spans=spans)
            for row in rows
            if (spans := _spans(row))
        ]
        if not recorded:
            return LeftOut.no_tokens
        begins = first.actions[0].start if first.actions else 0
        return RecordedEpisode(
            group_id=first.group_id,
            group_revision=first.group_revision,
            rollout_id=first.rollout_id,
            reward=reward,
            context=first.token_ids[: begins * _TOKEN_BYTES],
            rows=tuple(recorded),
        )


def best_episodes(
    groups: Iterable[RecordedGroup], *, top_k: int, min_reward: float | None
) -> tuple[tuple[RecordedEpisode, ...], int]:
    """Choose the best-rewarded episodes of each group, at most `top_k`; returns them, and how many
    were left out.

    With `min_reward`, those whose reward is at least that. Without, those whose reward is above the
    lowest of the group: where all rewards are equal none is better than another. Of equal rewards
    the first rollout ids count.
    """
    chosen: list[RecordedEpisode] = []
    left_out = 0
    for group in groups:
        lowest = min(group.rewards)
        good = [
            episode
            for episode in _ranked(group.episodes)
            if (episode.reward > lowest if min_reward is None else episode.reward >= min_reward)
        ]
        chosen += good[:top_k]
        left_out += len(group.episodes) - len(good[:top_k])
    return tuple(chosen), left_out


def preference_pairs(
    groups: Iterable[RecordedGroup],
    *,
    margin: float,
    pairs_per_group: int,
    first_action: bool = False,
) -> tuple[tuple[Pair, ...], int]:
    """Pair the episodes of each group; returns the pairs, and how many episodes are in none.

    The two of a pair begin with the same tokens before their first action, because a preference is
    one between continuations of the same context. Their rewards differ, by at least `margin`. Each
    episode is in at most one pair: of those that begin alike the best with the worst, the second
    best with the second worst, and so on. The widest pairs of a group count first. With
    `first_action` the first action alone is compared, otherwise all that are trained, in all rows.
    """
    pairs: list[Pair] = []
    left_out = 0
    for group in groups:
        beginnings: dict[bytes, list[RecordedEpisode]] = {}
        for episode in group.episodes:
            compared = _with_first_action_only(episode) if first_action else episode
            if compared is not None:
                beginnings.setdefault(episode.context, []).append(compared)
        found = [pair for alike in beginnings.values() for pair in _pairs(alike, margin)]
        found.sort(key=lambda pair: pair.rejected.reward - pair.chosen.reward)
        pairs += found[:pairs_per_group]
        left_out += len(group.episodes) - 2 * len(found[:pairs_per_group])
    return tuple(pairs), left_out


def offline_entries(
    episodes: Iterable[RecordedEpisode], version: Version, time_ms: int
) -> tuple[LedgerEntry, ...]:
    """Make the ledger entries of a version that was trained offline on these episodes, one for each
    group. Made again, they have the same ids.
    """
    actions: dict[tuple[str, str], set[str]] = {}
    for episode in episodes:
        actions.setdefault((episode.group_id, episode.group_revision), set()).update(
            episode.actions
        )
    return tuple(
        LedgerEntry(
            event_id=derive_id(OFFLINE, str(version), group_id, revision),
            event_time=time_ms,
            policy=version.policy,
            group_id=group_id,
            group_revision=revision,
            term=LedgerTerm.trained,
            actions=tuple(sorted(trained)),
            version=str(version),
            source=OFFLINE,
        )
        for (group_id, revision), trained in actions.items()
    )


def _forget_older(records: _Records, written: str) -> None:
    """Keep the newest complete revision, and the one that is being written."""
    newest = records.revisions.newest
    if newest is not None:
        for revision in records.members.keys() - {newest, written}:
            del records.members[revision]


def _reward_of(member: Trajectory | Tombstone) -> float | None:
    """The reward of an episode, if it has one that can be compared."""
    reward = member.episode_reward
    return reward if reward is not None and is_bounded(reward, LARGEST_TOTAL) else None


def _spans(row: Trajectory) -> tuple[Span, ...]:
    return tuple(
        Span(action=action_id(action.call_id, action.choice), start=action.start, end=action.end)
        for action in row.actions
        if _may_be_trained(action, token_count(row.token_ids))
    )


def _may_be_trained(action: Action, tokens: int) -> bool:
    return (
        action.loss
        and action.mask in (None, FilterReason.untrainable_sampling, FilterReason.unknown_version)
        and 0 < action.start < action.end <= tokens
    )


def _ranked(episodes: Sequence[RecordedEpisode]) -> list[RecordedEpisode]:
    return sorted(episodes, key=lambda episode: (-episode.reward, episode.rollout_id))


def _pairs(alike: Sequence[RecordedEpisode], margin: float) -> list[Pair]:
    ranked = _ranked(alike)
    return [
        Pair(chosen=better, rejected=worse)
        for better, worse in zip(
            ranked[: len(ranked) // 2], reversed(ranked[(len(ranked) + 1) // 2 :]), strict=True
        )
        if better.reward > worse.reward
        and better.reward - worse.reward >= margin
        # The same tokens cannot be made likelier than themselves.
        and _tokens_of(better) != _tokens_of(worse)
    ]


def _tokens_of(episode: RecordedEpisode) -> list[list[bytes]]:
    return [
        [row.token_ids[span.start * _TOKEN_BYTES : span.end * _TOKEN_BYTES] for span in row.spans]
        for row in episode.rows
    ]


def _with_first_action_only(episode: RecordedEpisode) -> RecordedEpisode | None:
    """The episode with the action that follows its context; None if that one is not trained."""
    row = episode.rows[0]
    span = row.spans[0]
    if not row.token_ids.startswith(episode.context) or (
        span.start * _TOKEN_BYTES != len(episode.context)
    ):
        return None
    shorter = RecordedRow(token_ids=row.token_ids[: span.end * _TOKEN_BYTES], spans=(span,))
    return msgspec.structs.replace(episode, rows=(shorter,))
