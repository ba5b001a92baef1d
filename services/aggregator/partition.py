"""One partition of the aggregator: which attempts are open, which may close, and who has been
silent too long.

An attempt closes when it has a terminal status *and* `llm.calls` has been read up to the end that
it had after the status was read: a call is acknowledged in the log before its reply leaves, hence
before its agent can say that it is done. A timeout falls due by event time or wall time, and is
published only when both topics have been read up to the end they had then: so wall time never
outruns the log. Timeouts are published to `agent.status` and take effect when they are read back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import NamedTuple

from fulgurite.enums import StatusKind
from fulgurite.episodes.deadlines import overdue, silent
from fulgurite.episodes.stitching import missing_inputs
from fulgurite.events import AgentStatus, Episode, Event, LlmCall
from fulgurite.ids import minted_at
from fulgurite.topics import AGENT_STATUS, DEAD_LETTERS, EPISODES, LLM_CALLS, Topic
from services.aggregator.attempts import Attempt, Group, Key, weight
from services.aggregator.call_expander import Expand
from services.aggregator.dead_letters import (
    LARGEST_EPISODE,
    letter_of_attempt,
    letter_of_episode,
    name_of,
)
from services.aggregator.settings import AggregatorSettings
from services.common.kafka.consumer import read_all
from services.common.kafka.dead_letters import actions_of, addressed, words_of
from services.common.runtime import logs
from services.common.runtime.clock import now_ms
from services.common.streaming.barrier import Barrier, BarrierQueue, Position
from services.common.streaming.event_clock import LOOK_EVERY_MS, SKEW_MS, EventClock, Interval
from services.common.streaming.log_cache import Completeness, Limits, LogCache
from services.common.streaming.poison import failure_of
from services.common.streaming.worker import Ack, Log, Rejected

logger = logs.get()

_FORGET_EVERY_MS = 2_000
"""Memory is not so short that closed groups must go at once."""

_WORTH_A_LOOK = 2 * 1024 * 1024
"""Bytes of text and prompts before what repeats is taken out: encoding an episode twice is only for
large ones.
"""


class Due(NamedTuple):
    """What fell due at some time: groups by their deadline, attempts that were silent too long."""

    now: int
    groups: dict[str, Group]
    silent: list[Attempt]

    def __bool__(self) -> bool:
        return bool(self.groups or self.silent)


class EvictedGroup(NamedTuple):
    """What is remembered of a group that memory has no more."""

    started_at: int
    """Record time before which nothing was written of it, Unix milliseconds."""
    at: int
    """When its id was made, Unix milliseconds; 0 for one that a user named."""


class AggregatorPartition:
    """A `Processor`; `position` says how far a topic of this partition has been read, `expand`
    completes a call of the log.
    """

    def __init__(
        self,
        partition: int,
        log: Log,
        settings: AggregatorSettings,
        position: Position,
        expand: Expand,
        written: Iterable[Episode],
        since: int = 0,
    ) -> None:
        self._partition = partition
        self._kafka = log
        self._settings = settings
        self._expand = expand
        self._groups: dict[str, Group] = {}
        self._closing: BarrierQueue[Key, Attempt] = BarrierQueue(
            log, partition, LLM_CALLS, position
        )
        self._expiring: Barrier[Due] = Barrier(log, partition, (LLM_CALLS, AGENT_STATUS), position)
        self._over_budget: dict[Key, Attempt] = {}
        """Those that hold too much, to be given up."""
        self._clock = EventClock(lambda: now_ms())
        self._look = Interval(LOOK_EVERY_MS, self._clock)
        self._forgetting = Interval(_FORGET_EVERY_MS, self._clock)
        self._closed: LogCache[str, Group, EvictedGroup] = LogCache(
            Limits(
                held_bytes=settings.keep_mb * 1_000_000,
                held_ms=int(settings.keep_s * 1000),
                notes=settings.remember_attempts,
            ),
            since,
        )
        """Groups that are over, kept for late calls."""
        self._written: dict[str, dict[Key, Episode]] = {}
        """Episodes of an earlier worker, by group, of which nothing came since."""
        for episode in written:
            self._written.setdefault(episode.group_id, {})[episode.rollout_id, episode.attempt] = (
                episode
            )

    async def consume(self, topic: Topic, event: Event, ack: Ack) -> None:
        """Take in a call or a status. Raises Rejected, LogUnavailable."""
        match event:
            case LlmCall():
                complete = await self._expand(event, partial(self._find_call, event))
                # A delta is held as the log has it: complete calls of a long conversation would
                # repeat the conversation again and again.
                self._add(complete, ack, None if event.parent is None else event)
            case AgentStatus():
                self._add(event, ack)
            case _:
                raise Rejected(
                    f"{type(event).__name__} {event.event_id} has no place in {topic.name}, which "
                    "holds calls or statuses; write it to a topic of its kind"
                )

    def _add(self, event: LlmCall | AgentStatus, ack: Ack, delta: LlmCall | None = None) -> None:
        self._clock.observe(event.event_time)
        if event.rollout_id is None:
            self._declare(event, ack)
            return
        group = self._group(event.group_id)
        key = (event.rollout_id, event.attempt)
        attempt = group.attempts.get(key)
        if attempt is None:
            attempt = group.attempts[key] = Attempt(key, event.group_id, event.mode)
            # It may be one that the deadline's timeouts did not know of.
            group.timed_out = False
        if group.given_up and not attempt.given_up:
            attempt.given_up = "is of a group whose timeouts cannot be published"
        if attempt.given_up:
            self._refuse(attempt, event, ack)
            return
        attempt.take(event, ack, delta)
        if attempt.held_bytes > self._settings.attempt_mb * 1_000_000:
            attempt.given_up = "outgrows FULGURITE_AGGREGATOR_ATTEMPT_MB"
            self._over_budget[key] = attempt
        elif attempt.ended or self._is_maybe_incomplete(event.group_id, group):
            self._closing.add(key, attempt)

    def _find_call(self, child: LlmCall, call_id: str) -> LlmCall | None:
        """Return a complete call of the child's attempt, if it is in memory."""
        group = self._groups.get(child.group_id) or self._closed.get(child.group_id)
        attempt = group.attempts.get((child.rollout_id, child.attempt)) if group else None
        return attempt.complete_call(call_id) if attempt else None

    async def work(self) -> None:
        """Give up attempts that take too much, close those that can be, time out those that are
        due, and put aside groups that are long over.
        """
        if self._over_budget:
            await self._give_up_over_budget()
        await self._close()
        await self._expire_overdue()

    def _group(self, group_id: str) -> Group:
        """Return a group to work on, with what memory and an earlier worker's episodes have of
        it.
        """
        group = self._groups.get(group_id)
        if group is None:
            group = self._groups[group_id] = self._closed.take(group_id) or Group.of_episodes(
                group_id, self._written.pop(group_id, {})
            )
        return group

    def _declare(self, event: AgentStatus, ack: Ack) -> None:
        if event.kind is not StatusKind.declared or event.declaration is None:
            raise Rejected(
                f"status {event.event_id} of kind {event.kind} names no rollout in "
                f"{AGENT_STATUS.name}; only a declaration of a group may do so. Send it with its "
                "rollout_id"
            )
        group = self._group(event.group_id)
        group.declared = group.declared or event
        # If it was found in the log before, its deadline may have passed without the rollouts of
        # which nothing is known.
        group.timed_out = False
        group.unacked.append(ack)

    def _refuse(self, attempt: Attempt, event: LlmCall | AgentStatus, ack: Ack) -> None:
        attempt.follow(event, ack.logged_at)
        if isinstance(event, LlmCall):
            raise Rejected(
                f"{name_of(attempt)} was given up: it {attempt.given_up}; begin another rollout",
                actions_of(event.mode, [event]),
            )
        ack()

    async def _give_up_over_budget(self) -> None:
        """One session without an end must not take the worker's memory."""
        over_budget, self._over_budget = self._over_budget, {}
        for attempt in over_budget.values():
            await self._give_up(
                attempt,
                "AttemptTooLarge",
                f"takes {attempt.held_bytes:,} bytes of memory, and "
                f"FULGURITE_AGGREGATOR_ATTEMPT_MB is {self._settings.attempt_mb:g}",
            )

    async def _give_up(self, attempt: Attempt, error_type: str, why: str) -> None:
        """A dead letter of an attempt, with its actions that are in no episode."""
        self._closing.remove(attempt.key)
        inputs, acks = attempt.give_up(why)
        letter = letter_of_attempt(
            attempt, inputs, self._kafka.settings, self._partition, error_type, why
        )
        await self._kafka.publish(DEAD_LETTERS, addressed(letter))
        for ack in acks:
            ack()

    async def _give_up_group(self, group_id: str, group: Group, failure: Exception) -> None:
        """Publish dead letters of a group's attempts that are not written: its timeouts cannot be
        published.
        """
        logger.error(
            "a group is given up", group_id=group_id, error=words_of(failure), exc_info=failure
        )
        group.given_up = True
        for attempt in list(group.attempts.values()):
            if not attempt.given_up:
                await self._give_up(
                    attempt,
                    type(failure).__name__,
                    f"is of a group whose timeouts cannot be published: {words_of(failure)}",
                )
        self._ack_group(group)

    async def _close(self) -> None:
        reached = await self._closing.reached()
        if not reached:
            return
        await self._reload(self._incomplete_groups(reached))
        # What has not ended after all, or whose end came only now, waits for its calls.
        ended = [attempt for attempt in reached if attempt.ended and attempt.barrier is not None]
        await asyncio.gather(*(self._write(attempt) for attempt in ended))
        for attempt in reached:
            if not attempt.ended:
                self._closing.remove(attempt.key)
        for group_id in {attempt.group_id for attempt in reached}:
            self._ack_group(self._groups[group_id])

    async def _write(self, attempt: Attempt) -> None:
        """Write the attempt's next revision, if it has one, and ack what is in it. What cannot
        be written is given up.
        """
        acks, attempt.unacked = attempt.unacked, []
        attempt.dirty = False
        failure = await failure_of(partial(self._write_revision, attempt))
        if failure is not None:
            logger.error(
                "an attempt cannot be written",
                rollout_id=attempt.rollout_id,
                attempt=attempt.attempt,
                error=words_of(failure),
                exc_info=failure,
            )
            attempt.unacked = [*acks, *attempt.unacked]
            await self._give_up(
                attempt, type(failure).__name__, f"cannot be written: {words_of(failure)}"
            )
            return
        for ack in acks:
            ack()
        if not attempt.dirty:
            self._closing.remove(attempt.key)
        if attempt.revisions >= self._settings.revisions:
            await self._give_up(
                attempt,
                "TooManyRevisions",
                f"was written {attempt.revisions} times, and FULGURITE_AGGREGATOR_REVISIONS is "
                f"{self._settings.revisions}; the last revision stands",
            )

    async def _write_revision(self, attempt: Attempt) -> None:
        episode = attempt.revision(self._groups[attempt.group_id].declared)
        if episode is not None:
            await self._publish(episode)
            attempt.written(episode)

    async def _publish(self, episode: Episode) -> None:
        """To `episodes`, or to `dead.letters` what no message can hold."""
        if sum(map(weight, episode.calls)) > _WORTH_A_LOOK:
            size = len(self._kafka.codec.encode(episode))
            if size > LARGEST_EPISODE:
                letter = letter_of_episode(episode, size, self._kafka.settings, self._partition)
                await self._kafka.publish(DEAD_LETTERS, addressed(letter))
                return
        await self._kafka.publish(EPISODES, [(episode.group_id, episode)])

    def _is_maybe_incomplete(self, group_id: str, group: Group) -> bool:
        """Whether the log may hold of a group what memory does not: a declaration, and attempts
        that were closed and evicted.
        """
        if group.reloaded:
            return False
        if self._closed.note_of(group_id) is not None:
            return True
        if group.declared is not None:
            return False
        if group.was_declared:
            return True
        minted = _minted_at(group_id)
        return (
            minted is not None
            and self._closed.completeness(group_id, minted) is not Completeness.complete
        )

    def _incomplete_groups(self, attempts: Iterable[Attempt]) -> set[str]:
        """Groups of these attempts of which memory lacks something."""
        groups = {attempt.group_id: self._groups[attempt.group_id] for attempt in attempts}
        incomplete = {
            attempt.group_id
            for attempt in attempts
            if self._is_incomplete(attempt, groups[attempt.group_id])
        }
        return incomplete | {
            group_id
            for group_id, group in groups.items()
            if self._is_maybe_incomplete(group_id, group)
        }

    async def _reload(self, incomplete: Collection[str]) -> None:
        """Read again from the log what it holds of these groups, of all in one go."""
        if not incomplete:
            return
        groups = {group_id: self._groups[group_id] for group_id in incomplete}
        since = max(0, min(map(self._began_at, incomplete)) - SKEW_MS)
        logger.info("reading groups from the log again", groups=len(incomplete), since=since)
        for topic in (EPISODES, AGENT_STATUS):
            for event in await asyncio.to_thread(self._read, topic, since, incomplete):
                if isinstance(event, Episode | AgentStatus) and event.group_id in incomplete:
                    groups[event.group_id].remember(event)
        for group_id in incomplete:
            groups[group_id].reloaded = True
            self._closed.drop_note(group_id)

    def _began_at(self, group_id: str) -> int:
        """Return a time before which nothing was written of a group, as far as is known."""
        evicted = self._closed.note_of(group_id)
        known = (_minted_at(group_id), None if evicted is None else evicted.started_at)
        return min((time for time in known if time is not None), default=SKEW_MS)

    def _is_incomplete(self, attempt: Attempt, group: Group) -> bool:
        """Whether something came for an attempt of which earlier inputs are not held."""
        if attempt.published is None:
            return False
        held = {*attempt.inputs, *([group.declared.event_id] if group.declared else [])}
        return bool(missing_inputs(attempt.published, held)) and not held <= set(
            attempt.published.inputs
        )

    def _read(self, topic: Topic, since_ms: int, group_ids: Collection[str]) -> list[Event]:
        keys = [group_id.encode() for group_id in group_ids]
        records = read_all(
            self._kafka.settings,
            topic,
            self._kafka.codec,
            partitions=[self._partition],
            since_ms=since_ms,
            keys=keys,
        )
        return [record.event for record in records if record.event is not None]

    def _ack_group(self, group: Group) -> None:
        if group.unacked and group.complete():
            acks, group.unacked = group.unacked, []
            for ack in acks:
                ack()

    async def _expire_overdue(self) -> None:
        if not self._expiring.is_armed:
            if not self._look.restart_if_over():
                return
            due = await self._look_through_groups()
            if not due:
                return
            await self._expiring.arm(due)
        due = self._expiring.passed()
        if due is not None:
            await self._expire(due)

    async def _look_through_groups(self) -> Due:
        for group in self._groups.values():
            self._ack_group(group)
        if self._forgetting.restart_if_over():
            self._forget()
        await self._reload(
            [
                group_id
                for group_id, group in self._groups.items()
                if self._is_maybe_incomplete(group_id, group)
            ]
        )
        now = self._clock.now
        groups = {
            group_id: group
            for group_id, group in self._groups.items()
            if self._is_overdue(group, now)
        }
        silent = [
            attempt
            for group_id, group in self._groups.items()
            for attempt in self._silent(group_id, group, now)
        ]
        return Due(now, groups, silent)

    async def _expire(self, due: Due) -> None:
        quiet = [attempt for attempt in due.silent if self._stayed_silent(attempt, due.now)]
        await asyncio.gather(
            *(
                self._time_out(
                    attempt.group_id,
                    self._groups[attempt.group_id],
                    partial(self._timeouts_of_silent, attempt),
                )
                for attempt in quiet
            ),
            *(
                self._time_out(group_id, group, partial(self._timeouts_of_overdue, group))
                for group_id, group in due.groups.items()
            ),
        )

    async def _time_out(
        self, group_id: str, group: Group, timeouts: Callable[[], list[AgentStatus]]
    ) -> None:
        """Publish timeouts of a group; give it up if that cannot be done."""

        async def publish() -> None:
            await self._kafka.publish(
                AGENT_STATUS, [(timeout.group_id, timeout) for timeout in timeouts()]
            )

        failure = await failure_of(publish)
        if failure is not None:
            await self._give_up_group(group_id, group, failure)

    def _timeouts_of_overdue(self, group: Group) -> list[AgentStatus]:
        group.timed_out = True
        if group.declared is None:
            return []
        heard = group.heard()
        # Where the declaration was acknowledged before, rollouts that memory lacks were written
        # too long ago.
        return [
            timeout
            for timeout in overdue(group.declared, heard)
            if timeout.rollout_id in heard or group.unacked
        ]

    def _is_overdue(self, group: Group, now: int) -> bool:
        declaration = group.declared.declaration if group.declared else None
        return (
            declaration is not None
            and not group.timed_out
            and declaration.deadline <= now
            and not group.complete()
        )

    def _silent(self, group_id: str, group: Group, now: int) -> list[Attempt]:
        if group.declared is not None or self._is_maybe_incomplete(group_id, group):
            return []
        return [
            attempt
            for attempt in group.attempts.values()
            if not attempt.ended and self._is_silent(attempt, now)
        ]

    def _stayed_silent(self, attempt: Attempt, now: int) -> bool:
        """Now that all is read: where calls were read first, the declaration came only since."""
        group = self._groups.get(attempt.group_id)
        return (
            group is not None
            and group.declared is None
            and not attempt.ended
            and self._is_silent(attempt, now)
        )

    def _is_silent(self, attempt: Attempt, now: int) -> bool:
        return attempt.last_event_time + int(self._settings.silence_s * 1000) <= now

    def _timeouts_of_silent(self, attempt: Attempt) -> list[AgentStatus]:
        timeout = silent(
            group_id=attempt.group_id,
            rollout_id=attempt.rollout_id,
            attempt=attempt.attempt,
            mode=attempt.mode,
            last_event_time=attempt.last_event_time,
            silence_ms=int(self._settings.silence_s * 1000),
        )
        return [timeout]

    def _forget(self) -> None:
        """Put aside groups that are complete and long over, and evict what is too old or too
        much.
        """
        before = self._clock.now - int(self._settings.keep_s * 1000)
        over = [
            (group_id, group) for group_id, group in self._groups.items() if group.is_over(before)
        ]
        for group_id, group in over:
            del self._groups[group_id]
            episodes = group.episodes
            if episodes:
                self._closed.put(
                    group_id,
                    group,
                    _note(group_id, episodes),
                    weight=group.held_bytes,
                    at=max(episode.event_time for episode in episodes),
                )
        for group_id, written in list(self._written.items()):
            if all(episode.event_time < before for episode in written.values()):
                del self._written[group_id]
                self._closed.note(group_id, _note(group_id, written.values()))
        self._closed.evict(self._clock.now)


def _note(group_id: str, episodes: Iterable[Episode]) -> EvictedGroup:
    return EvictedGroup(
        started_at=min(episode.started_at for episode in episodes), at=_minted_at(group_id) or 0
    )


def _minted_at(group_id: str) -> int | None:
    """The time in the id; None where it has none. A time that is still to come is none: the id of a
    session that a user named may look as if it held one.
    """
    minted = minted_at(group_id)
    return None if minted is None or minted > now_ms() + SKEW_MS else minted
