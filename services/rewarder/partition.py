"""One partition of the rewarder: groups that wait for episodes or rewards, and closed groups for
which something comes late.

A group closes when every declared rollout's last attempt has come and has its expected rewards;
without all rewards some time after its deadline, without all episodes (the aggregator is down: it
judges every rollout at the deadline) a longer time after. A group that nobody declared is one
episode and waits some time for a reward. What comes for a closed group closes it anew, whole, under
a new revision if that changes anything: once for all that comes together, and not more often than
the settings say. A group that memory has evicted is read from the log again first. What falls due
is closed only when both topics have been read up to the end they had then. Ledger entries are
acknowledged before the rows are sent, and rows before the `GroupClosed`, so that this in the log
tells that all is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from fulgurite.avro.codec import Codec
from fulgurite.errors import UnknownRule
from fulgurite.events import (
    AgentReward,
    DeadLetter,
    Declaration,
    Episode,
    Event,
    GroupClosed,
    LedgerEntry,
    Tombstone,
    Trajectory,
)
from fulgurite.groups.credit import credit_rule
from fulgurite.groups.group_revisions import ClosingRecord, RevisionLog, revision_of
from fulgurite.ids import minted_at
from fulgurite.topics import (
    AGENT_REWARDS,
    DEAD_LETTERS,
    EPISODES,
    TRAINING_LEDGER,
    TRAJECTORIES,
    Topic,
)
from services.common.kafka.dead_letters import (
    NO_RECORD,
    actions_of,
    addressed,
    key_of,
    lost,
    lost_episode,
    words_of,
)
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs
from services.common.runtime.clock import now_ms
from services.common.streaming.barrier import Barrier, EndOffsets, Position
from services.common.streaming.event_clock import LOOK_EVERY_MS, SKEW_MS, EventClock, Interval
from services.common.streaming.log_cache import Completeness, Limits, LogCache
from services.common.streaming.poison import failure_of
from services.common.streaming.worker import Ack, Rejected
from services.rewarder.groups import Closing, Group
from services.rewarder.reload import ReloadedGroup
from services.rewarder.settings import RewarderSettings

logger = logs.get()

STAGE = "rewarder"
"""Of dead letters."""

Reload = Callable[[Collection[str], int], Mapping[str, ReloadedGroup]]
"""Groups by id, and since when to read."""


class PartitionLog(EndOffsets, Protocol):
    """What is needed of `services.common.streaming.worker.Log`."""

    settings: KafkaSettings
    codec: Codec

    async def publish(self, topic: Topic, events: Iterable[tuple[str, Event]]) -> None:
        """Send and await."""
        ...


class RewarderPartition:
    """A `Processor`; `position` says how far a topic of this partition has been read, `reload`
    reads some groups from the log again.

    `written`: what the log holds of the rewarder's since `since`, Unix milliseconds, in its order.
    """

    def __init__(
        self,
        partition: int,
        log: PartitionLog,
        settings: RewarderSettings,
        position: Position,
        reload: Reload,
        written: Iterable[ClosingRecord | DeadLetter],
        since: int,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._partition = partition
        self._kafka = log
        self._settings = settings
        self._rules = settings.rules()
        self._read_again = reload
        self._clock = EventClock(clock)
        self._look = Interval(LOOK_EVERY_MS, self._clock)
        self._due: Barrier[set[str]] = Barrier(log, partition, (EPISODES, AGENT_REWARDS), position)
        """Ids of groups that are due."""
        self._waiting: dict[str, Group] = {}
        self._closed: LogCache[str, Group, Closing] = LogCache(
            Limits(
                held_bytes=settings.keep_mb * 1_000_000,
                held_ms=int(settings.keep_s * 1000),
                notes=settings.remember_groups,
                notes_ms=int(settings.remember_s * 1000),
            ),
            since,
        )
        self._touched: set[str] = set()
        self._begun: dict[str, set[str]] = {}
        """What need not be written again, of groups in the middle of which an earlier worker died.
        """
        self._remember(written)

    async def consume(self, topic: Topic, event: Event, ack: Ack) -> None:
        """Take in an episode or a reward. Raises Rejected."""
        if not isinstance(event, Episode | AgentReward):
            raise Rejected(
                f"{type(event).__name__} {event.event_id} has no place in {topic.name}, which "
                "holds episodes or rewards; write it to a topic of its kind"
            )
        if isinstance(event, Episode) and event.declaration is not None:
            _check_rule(event, event.declaration)
        self._clock.observe(event.event_time)
        group = self._waiting.get(event.group_id)
        if group is None:
            group = self._waiting[event.group_id] = self._recall(event)
        elif group.maybe_incomplete and isinstance(event, Episode) and not _is_first(event):
            group.incomplete = True
        group.take(event, ack)
        if group.is_open:
            self._touched.add(event.group_id)
        elif group.incomplete or group.news:
            group.await_more(self._clock.our_time, self._settings)
        else:
            self._put_by(event.group_id, group)

    async def work(self) -> None:
        """Close what is complete or due."""
        touched, self._touched = self._touched, set()
        for group_id in touched:
            group = self._waiting.get(group_id)
            if group is not None and group.is_open:
                await self._guarded(group_id, group, partial(self._close_complete, group_id, group))
        await self._close_due()

    def _recall(self, event: Episode | AgentReward) -> Group:
        """Return a group that is not waiting as memory has it, or what is known of it."""
        group = self._closed.take(event.group_id)
        if group is not None:
            return group
        closing = self._closed.note_of(event.group_id)
        if closing is None:
            return self._new(event)
        group = Group(closing.revision, incomplete=True)
        group.closed_at = closing.at
        return group

    def _new(self, event: Episode | AgentReward) -> Group:
        """Return a group that is neither waiting nor known to be closed: was it closed before we
        began to look, and forgotten?
        """
        minted = minted_at(event.group_id)
        if minted is not None and minted <= self._clock.our_time + SKEW_MS:
            known = self._closed.completeness(event.group_id, minted)
            return Group(incomplete=known is not Completeness.complete)
        # A session that a user named: its id tells no time.
        return (
            Group(maybe_incomplete=True)
            if isinstance(event, AgentReward) or _is_first(event)
            else Group(incomplete=True)
        )

    async def _close_due(self) -> None:
        if not self._due.is_armed:
            if not self._look.restart_if_over():
                return
            self._closed.evict(self._clock.our_time)
            due = self._due_now()
            if not due:
                return
            await self._due.arm(due)
        due = self._due.passed()
        if due is not None:
            await self._write_all(
                {
                    group_id: self._waiting[group_id]
                    for group_id in sorted(due & self._waiting.keys())
                }
            )

    def _due_now(self) -> set[str]:
        return {
            group_id
            for group_id, group in self._waiting.items()
            if group.is_due(self._clock, self._settings)
        }

    async def _write_all(self, groups: Mapping[str, Group]) -> None:
        await self._reload(
            {
                group_id: group
                for group_id, group in groups.items()
                if group.incomplete or (group.maybe_incomplete and not group.gathered.episodes)
            }
        )
        for group_id, group in groups.items():
            if group_id in self._waiting:
                await self._guarded(group_id, group, partial(self._write, group_id, group))

    async def _close_complete(self, group_id: str, group: Group) -> None:
        if group.gathered.is_complete(self._rules):
            await self._close(group_id, group)

    async def _guarded(
        self, group_id: str, group: Group, step: Callable[[], Awaitable[None]]
    ) -> None:
        """A group that cannot be closed is given up: dead letters of its episodes, with their
        actions.
        """
        failure = await failure_of(step)
        if failure is None:
            return
        logger.error(
            "a group cannot be closed", group_id=group_id, error=words_of(failure), exc_info=failure
        )
        await self._bury(
            group_id,
            group,
            type(failure).__name__,
            f"group {group_id} cannot be closed: {words_of(failure)}",
        )
        # What comes for it later, or is redriven, finds the whole group in the log again.
        self._note_closed(group_id, None)

    async def _write(self, group_id: str, group: Group) -> None:
        """Close a group that is due, for the first time or anew; give up rewards without any
        episode.
        """
        if not group.gathered.episodes:
            if group.is_due(self._clock, self._settings):
                logger.warning(
                    "rewards of a group without episodes are given up",
                    group_id=group_id,
                    rewards=sorted(group.gathered.rewards),
                )
                self._waiting.pop(group_id).ack()
                self._note_closed(group_id, None)
        elif (
            group.is_open
            and not group.is_due(self._clock, self._settings)
            and not group.gathered.is_complete(self._rules)
        ):
            logger.debug("a group turned out to be open", group_id=group_id)
        else:
            await self._close(group_id, group)

    async def _reload(self, groups: dict[str, Group]) -> None:
        """Read again from the log what these groups are made of, and what was written of them."""
        if not groups:
            return
        bound = self._clock.our_time - int(self._settings.amend_within_s * 1000)
        times = [minted_at(group_id) or bound for group_id in groups]
        since = max(
            bound, min(bound if time > self._clock.our_time else time - SKEW_MS for time in times)
        )
        logger.info("reading groups from the log again", groups=len(groups), since=since)
        found = await asyncio.to_thread(self._read_again, groups.keys(), since)
        for group_id, reloaded in found.items():
            group = groups[group_id]
            group.incomplete = group.maybe_incomplete = False
            if not reloaded.is_complete:
                await self._give_up(group_id, group)
                continue
            if reloaded.written.standing is not None:
                group.revision = reloaded.written.standing
            group.supersedes = reloaded.written.closed
            self._note_begun(group_id, reloaded.written)
            for event in reloaded.inputs:
                group.gathered.add(event)

    async def _give_up(self, group_id: str, group: Group) -> None:
        """The log no longer holds what the group was made of: late rewards change nothing, late
        episodes are dead letters.
        """
        logger.warning(
            "late events change nothing: the log no longer holds all of their group",
            group_id=group_id,
            rewards=sorted(group.gathered.rewards),
            episodes=sorted(group.gathered.episodes),
        )
        await self._bury(
            group_id,
            group,
            "TooLate",
            f"group {group_id} is no longer all in the log, so it cannot be closed again; send "
            "late events within the retention and FULGURITE_REWARDER_AMEND_WITHIN_S",
        )

    async def _bury(self, group_id: str, group: Group, error_type: str, why: str) -> None:
        """Dead letters of a group's episodes; its rewards change nothing."""
        group.take_up()
        episodes = list(group.gathered.episodes.values())
        dead_letters = [
            self._letter(episode, error_type, f"episode {episode.episode_id}: {why}")
            for episode in episodes
        ]
        await self._kafka.publish(DEAD_LETTERS, addressed(*dead_letters))
        del self._waiting[group_id]
        group.ack_taken()
        if group.unacked:
            # It came meanwhile, and is as late.
            group.incomplete = True
            group.await_more(self._clock.our_time, self._settings)
            self._waiting[group_id] = group

    def _letter(self, episode: Episode, error_type: str, why: str) -> DeadLetter:
        """With its bytes, to be redriven."""
        value = self._kafka.codec.encode(episode)
        return lost(
            lost_episode(episode),
            self._kafka.settings,
            self._partition,
            STAGE,
            error_type=error_type,
            error=why,
            value=value,
        )

    async def _close(self, group_id: str, group: Group) -> None:
        group.take_up()
        outputs = group.gathered.close(group_id, self._rules)
        revision = revision_of(outputs) or ""
        if revision != group.revision:
            if group.revision:
                logger.info(
                    "a group is closed again",
                    group_id=group_id,
                    revision=revision,
                    supersedes=group.revision,
                )
            for rollout_id, why in group.gathered.excesses().items():
                logger.warning(
                    "rewards of a rollout are not counted",
                    group_id=group_id,
                    rollout_id=rollout_id,
                    error=why,
                )
            closed = group.gathered.closed(outputs, group.supersedes)
            if closed is not None:
                await self._publish(group_id, [*outputs, closed])
                group.supersedes = revision
            group.revision = revision
            group.closed_at = self._clock.our_time
        group.ack_taken()
        if group.news:
            group.await_more(self._clock.our_time, self._settings)
        else:
            self._put_by(group_id, group)

    def _put_by(self, group_id: str, group: Group) -> None:
        del self._waiting[group_id]
        group.ack()
        self._closed.put(
            group_id,
            group,
            Closing(group.revision, group.closed_at),
            weight=group.weight(),
            at=group.closed_at,
        )

    def _note_closed(self, group_id: str, revision: str | None) -> None:
        """Remember a group that was closed, or (None) given up before it was, and is not at
        hand.
        """
        self._closed.note(group_id, Closing(revision, self._clock.our_time))

    async def _publish(self, group_id: str, records: Sequence[ClosingRecord]) -> None:
        """Entries first, then rows, then `GroupClosed`; without those that an earlier worker had
        written before it died.
        """
        begun = self._begun.pop(group_id, set[str]())
        new = [record for record in records if record.event_id not in begun]
        for topic, kinds in (
            (TRAINING_LEDGER, LedgerEntry),
            (TRAJECTORIES, Trajectory | Tombstone),
            (TRAJECTORIES, GroupClosed),
        ):
            await self._kafka.publish(
                topic, [(group_id, record) for record in new if isinstance(record, kinds)]
            )

    def _note_begun(self, group_id: str, written: RevisionLog) -> None:
        begun = written.begun()
        if begun:
            self._begun[group_id] = begun

    def _remember(self, outputs: Iterable[ClosingRecord | DeadLetter]) -> None:
        """Groups with a whole revision are closed; of others, what was written is not written
        again. Given up groups are known.
        """
        groups: dict[str, RevisionLog] = {}
        for output in outputs:
            if not isinstance(output, DeadLetter):
                groups.setdefault(output.group_id, RevisionLog()).add(output)
            elif output.offset == NO_RECORD:
                self._note_closed(key_of(output), None)
        for group_id, written in groups.items():
            self._note_begun(group_id, written)
            if written.standing is not None:
                self._note_closed(group_id, written.standing)


def _is_first(episode: Episode) -> bool:
    """Whether nothing was written of its rollout before."""
    return episode.supersedes is None and episode.attempt == 0


def _check_rule(episode: Episode, declaration: Declaration) -> None:
    try:
        credit_rule(declaration.credit_rule)
    except UnknownRule as error:
        raise Rejected(str(error), actions_of(episode.mode, episode.calls)) from error
