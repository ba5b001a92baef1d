"""One partition of the rewarder: groups that wait for episodes or rewards, and groups that are closed.

A group closes when every declared rollout's last attempt has come and has its expected rewards; without all rewards some time after
its deadline, without all episodes (the aggregator is down: it judges every rollout at the deadline) a longer time after. A group that
nobody declared is one episode and waits some time for a reward. What falls due is closed only when both topics have been read up to the
end they had then. Ledger entries are acknowledged before the rows are sent, so that rows in the log tell that the entries are there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from fulgurite.closing import Output, awaits_episodes, awaits_rewards, close_group, late_entries
from fulgurite.credit import credit_rule
from fulgurite.errors import UnknownRule
from fulgurite.events import AgentReward, Declaration, Episode, Event, LedgerEntry, Tombstone, Trajectory
from fulgurite.ids import action_id
from fulgurite.kinds import Mode
from fulgurite.topics import AGENT_REWARDS, EPISODES, TRAINING_LEDGER, TRAJECTORIES, Topic
from fulgurite.trajectories import successful_actions
from services import logs
from services.rewarder.settings import RewarderSettings
from services.streams import Log, Rejected, Settle, now_ms

_log = logs.get()

_SKEW_MS = 60_000
"""Event times further ahead of our clock than this are a broken clock and do not move time."""

_LOOK_EVERY_MS = 250
"""Looking through all open groups for what is due costs more than an input."""


class OpenGroup:
    """A group that waits."""

    def __init__(self) -> None:
        self.episodes: dict[tuple[str, int], Episode] = {}
        self.rewards: dict[str, AgentReward] = {}
        self.unsettled: list[Settle] = []

    def take(self, event: Episode | AgentReward, settle: Settle) -> None:
        """Hold an input until the group is closed. Of an attempt the revision with the most inputs counts."""
        self.unsettled.append(settle)
        if isinstance(event, AgentReward):
            self.rewards.setdefault(event.event_id, event)
            return
        key = (event.rollout_id, event.attempt)
        held = self.episodes.get(key)
        if held is None or set(event.inputs) > set(held.inputs):
            self.episodes[key] = event

    def due_at(self, settings: RewarderSettings) -> int:
        """Unix milliseconds after which the group closes with what it has."""
        if not self.episodes:
            return min(reward.event_time for reward in self.rewards.values()) + int(settings.orphan_s * 1000)
        declaration = next((episode.declaration for episode in self.episodes.values() if episode.declaration), None)
        if declaration is None:
            return max(episode.ended_at for episode in self.episodes.values()) + int(settings.live_wait_s * 1000)
        grace = settings.episode_grace_s if awaits_episodes(declaration, self.episodes.values()) else settings.grace_s
        return declaration.deadline + int(grace * 1000)


class ClosedGroup:
    """A group that was closed: what came of it."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        self.accounted: set[str] = set()

    def count(self, output: Output) -> None:
        """Note the actions that an output accounts for."""
        if isinstance(output, Trajectory):
            self.accounted.update(action_id(action.call_id, action.choice) for action in output.actions if action.loss)
        elif isinstance(output, LedgerEntry):
            self.accounted.update(output.actions)


class RewarderPartition:
    """A `Processor`; `position` says how far a topic of this partition has been read."""

    def __init__(
        self,
        partition: int,
        log: Log,
        settings: RewarderSettings,
        position: Callable[[Topic], int],
        written: Iterable[Output],
    ) -> None:
        self._partition = partition
        self._log = log
        self._settings = settings
        self._rules = settings.rules()
        self._position = position
        self._open: dict[str, OpenGroup] = {}
        self._touched: set[str] = set()
        self._closed: dict[str, ClosedGroup] = {}
        self._late: list[tuple[Episode, Settle]] = []
        self._due: tuple[dict[Topic, int], set[str]] | None = None
        self._time = 0
        self._next_look = 0
        self._written: set[str] = set()
        self._remember(list(written))

    def take(self, topic: Topic, event: Event, settle: Settle) -> None:
        """Take an episode or a reward in. Raises Rejected."""
        if not isinstance(event, Episode | AgentReward):
            raise Rejected(f"{type(event).__name__} has no place in {topic.name}")
        if isinstance(event, Episode) and event.declaration is not None:
            _check_rule(event, event.declaration)
        self._time = max(self._time, min(event.event_time, now_ms() + _SKEW_MS))
        if event.group_id not in self._closed:
            self._open.setdefault(event.group_id, OpenGroup()).take(event, settle)
            self._touched.add(event.group_id)
        elif isinstance(event, Episode):
            self._late.append((event, settle))
        else:
            settle()

    async def work(self) -> None:
        """Close what is complete or due; account for what is late."""
        touched, self._touched = self._touched, set()
        for group_id in touched:
            group = self._open.get(group_id)
            if group is not None and self._complete(group):
                await self._close(group_id, group)
        await self._close_due()
        late, self._late = self._late, []
        for episode, settle in late:
            await self._account_late(episode)
            settle()

    def _complete(self, group: OpenGroup) -> bool:
        episodes = list(group.episodes.values())
        if not episodes:
            return False
        declaration = next((episode.declaration for episode in episodes if episode.declaration), None)
        rewards = list(group.rewards.values())
        return not awaits_episodes(declaration, episodes) and not awaits_rewards(declaration, episodes, rewards, self._rules)

    async def _close_due(self) -> None:
        if self._due is None:
            if now_ms() < self._next_look:
                return
            self._next_look = now_ms() + _LOOK_EVERY_MS
            now = max(self._time, now_ms())
            due = {group_id for group_id, group in self._open.items() if group.due_at(self._settings) <= now}
            if not due:
                return
            self._due = ({topic: await self._log.end_offset(topic, self._partition) for topic in (EPISODES, AGENT_REWARDS)}, due)
        ends, due = self._due
        if any(self._position(topic) < end for topic, end in ends.items()):
            return
        self._due = None
        for group_id in due & self._open.keys():
            group = self._open[group_id]
            if group.episodes:
                await self._close(group_id, group)
            else:
                _log.warning("rewards of a group without episodes are given up", group_id=group_id, rewards=sorted(group.rewards))
                self._settle(group_id)

    async def _close(self, group_id: str, group: OpenGroup) -> None:
        declaration = next((episode.declaration for episode in group.episodes.values() if episode.declaration), None)
        outputs = close_group(group_id, declaration, group.episodes.values(), list(group.rewards.values()), self._rules)
        await self._publish(group_id, outputs)
        closed = self._closed.setdefault(group_id, ClosedGroup(_revision(outputs)))
        for output in outputs:
            closed.count(output)
        self._settle(group_id)

    def _settle(self, group_id: str) -> None:
        group = self._open.pop(group_id)
        for settle in group.unsettled:
            settle()

    async def _publish(self, group_id: str, outputs: Sequence[Output]) -> None:
        """Entries first, then rows; without those that an earlier worker had written before it died."""
        new = [output for output in outputs if output.event_id not in self._written]
        await self._log.publish(TRAINING_LEDGER, [(group_id, output) for output in new if isinstance(output, LedgerEntry)])
        await self._log.publish(TRAJECTORIES, [(group_id, output) for output in new if not isinstance(output, LedgerEntry)])
        self._written.difference_update(output.event_id for output in outputs)

    async def _account_late(self, episode: Episode) -> None:
        closed = self._closed[episode.group_id]
        entries = late_entries(episode.group_id, closed.revision, episode, closed.accounted)
        await self._log.publish(TRAINING_LEDGER, [(entry.group_id, entry) for entry in entries])
        for entry in entries:
            closed.count(entry)

    def _remember(self, outputs: Sequence[Output]) -> None:
        """Groups whose rows are all in the log are closed; of others, what was written is not written again."""
        by_group: dict[str, list[Output]] = {}
        for output in outputs:
            by_group.setdefault(output.group_id, []).append(output)
        for group_id, found in by_group.items():
            revision = _whole_revision(found)
            if revision is None:
                self._written.update(output.event_id for output in found)
                continue
            closed = self._closed[group_id] = ClosedGroup(revision)
            for output in found:
                closed.count(output)


def _check_rule(episode: Episode, declaration: Declaration) -> None:
    """Raises Rejected for a credit rule that there is not."""
    try:
        credit_rule(declaration.credit_rule)
    except UnknownRule as error:
        lost = tuple(action for call in episode.calls for action in successful_actions(call)) if episode.mode is Mode.train else ()
        raise Rejected(str(error), lost) from error


def _revision(outputs: Sequence[Output]) -> str:
    return next((output.group_revision for output in outputs if output.group_revision is not None), "")


def _whole_revision(outputs: Sequence[Output]) -> str | None:
    """The group revision of which every member has all its rows or its tombstone, if there is one."""
    members: dict[str, dict[str, int]] = {}
    sizes: dict[str, int] = {}
    for output in {output.event_id: output for output in outputs}.values():
        if isinstance(output, LedgerEntry):
            continue
        sizes[output.group_revision] = output.group_size
        left = members.setdefault(output.group_revision, {})
        rows = 1 if isinstance(output, Tombstone) else output.rows_in_episode
        left[output.rollout_id] = left.get(output.rollout_id, rows) - 1
    whole = (revision for revision, left in members.items() if len(left) == sizes[revision] and not any(left.values()))
    return next(whole, None)
