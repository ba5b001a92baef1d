"""Run a judge: read `episodes`, ask a model to rank each group, write `agent.rewards`.

    fulgurite judge --model ALIAS --name judge [--rubric FILE] [--run-id RUN]

Every declared group of the run (of every run, without `--run-id`) is judged once it is complete or
overdue: at least once, a bounded number at a time. With `--live` every live episode that is opted
in is judged by itself, unless somebody has voted on it. A group that gets no scores gets rewards
without a value and with the error. Offsets are committed in order, after the rewards were
acknowledged; groups that were not committed are judged again after a restart, with the same reward
ids.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import cast

import msgspec
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from fulgurite.calls.training_use import wants_fallback
from fulgurite.enums import Mode
from fulgurite.errors import BadClaim
from fulgurite.events import AgentReward, Episode
from fulgurite.ids import derive_id
from fulgurite.topics import AGENT_REWARDS, DEAD_LETTERS, EPISODES
from services.common.blobs.blob_store import redeemed_episode
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import Record, read_all, read_message
from services.common.kafka.dead_letters import Lost, addressed, lost, words_of
from services.common.kafka.lag import watch_lag
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import check_topics
from services.common.runtime import liveness, logs, metrics
from services.common.runtime.ending import run_service
from services.common.streaming.episode_readers import (
    bury,
    episodes_consumer,
    parse_with_traffic,
    serve,
    subscribe,
)
from services.common.streaming.poison import failure_of
from services.judge.groups import Waiting, WaitingRoom
from services.judge.model import JudgeModel
from services.judge.prompt import DEFAULT_RUBRIC
from services.judge.scores import GroupJudge
from services.judge.settings import JudgeSettings

logger = logs.get()

_STAGE = "judge"
_POLL_S = 0.2
"""How soon a stop and a deadline are noticed; an episode wakes the poll at once."""
_AT_ONCE = 64
_AHEAD = 4
"""Reading pauses at this many waiting groups for each of `FULGURITE_JUDGE_CONCURRENCY`."""

_REMEMBERED = 10_000
"""How many judged groups are remembered; a few megabytes."""

_Left = list[TopicPartition]
"""Partitions that went to another judge."""


class Judge:
    """Judges groups until stopped."""

    def __init__(
        self,
        judge: GroupJudge,
        model: JudgeModel,
        run_id: str | None,
        kafka: KafkaSettings,
        settings: JudgeSettings,
        since_ms: int | None = None,
    ) -> None:
        """`since_ms`: begin at episodes of this time (Unix milliseconds), not at the first."""
        self._judge = judge
        self._model = model
        self._run_id = run_id
        self._kafka = kafka
        self._settings = settings
        self._since_ms = since_ms
        self._codec = make_codec()
        self._producer = EventProducer(kafka, self._codec, "fulgurite-judge")
        self._room = WaitingRoom(settings.live_wait_s if judge.is_live else None)
        self._turns = asyncio.Semaphore(settings.concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard: list[Message | _Left] = []
        self._committed: dict[int, int] = {}
        self._judged: dict[str, frozenset[str]] = {}
        """The revisions compared last, by group: an episode written twice is not judged again."""
        self._stopping = False

    def stop(self) -> None:
        """Stop soon. Groups that are being judged are judged again after the next start."""
        self._stopping = True

    async def run(self) -> None:
        """Judge until stopped. Groups that were not committed are judged again after a restart.

        Raises KafkaException, LogUnavailable.
        """
        consumer = episodes_consumer(
            self._kafka, self._group_id(), self._settings.session_timeout_s
        )
        subscribe(consumer, self._kafka, self._since_ms, on_revoke=self._left, on_lost=self._left)
        watch_lag(consumer, self._kafka)
        logger.info("ready", judge=self._judge.source, run_id=self._run_id)
        try:
            async with self._model:
                try:
                    while not self._stopping:
                        await self._turn(consumer)
                finally:
                    # Before the connections close: a question whose connection closes would be
                    # reported as a failure of the model.
                    await self._leave_off()
        finally:
            consumer.close()
            self._producer.close()

    async def _leave_off(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _turn(self, consumer: Consumer) -> None:
        busy = len(self._tasks) >= _AHEAD * self._settings.concurrency
        for heard in await asyncio.to_thread(self._consume, consumer, busy):
            if isinstance(heard, list):
                self._forget(heard)
            else:
                await self._hear(read_message(heard, self._codec))
        if consumer.memberid():
            liveness.beat()
        due = self._room.due(
            int(time.time() * 1000), self._settings.grace_s, partial(self._has_more, consumer)
        )
        for group in await self._without_votes(due):
            self._tasks.add(asyncio.create_task(self._judge_group(group)))
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.remove(task)
            task.result()
        await asyncio.to_thread(self._commit, consumer)

    async def _without_votes(self, groups: list[Waiting]) -> list[Waiting]:
        """Of live groups, those on which nobody has voted yet; the others are done."""
        if not self._judge.is_live or not groups:
            return groups
        keys = {group.group_id.encode() for group in groups}

        def read() -> set[str]:
            records = read_all(
                self._kafka,
                AGENT_REWARDS,
                self._codec,
                partitions=sorted({group.partition for group in groups}),
                since_ms=min(group.began() for group in groups),
                keys=keys,
            )
            return {
                record.event.group_id
                for record in records
                if isinstance(record.event, AgentReward) and not record.event.fallback
            }

        voted = await asyncio.to_thread(read)
        for group in groups:
            if group.group_id in voted:
                self._room.mark_done(group)
        return [group for group in groups if group.group_id not in voted]

    def _consume(self, consumer: Consumer, busy: bool) -> list[Message | _Left]:
        """Return the messages read and the partitions lost, in the order in which it happened."""
        mine = consumer.assignment()
        (consumer.pause if busy else consumer.resume)(mine)
        self._heard = []
        message = consumer.poll(_POLL_S)
        while message is not None:
            failure = message.error()
            if failure is not None:
                raise KafkaException(failure)
            self._heard.append(message)
            message = consumer.poll(0) if len(self._heard) < _AT_ONCE else None
        return self._heard

    def _has_more(self, consumer: Consumer, partition: int, offset: int) -> bool:
        """Whether the partition has records from `offset` on, or may have."""
        place = TopicPartition(self._kafka.topic(EPISODES), partition)
        try:
            high = consumer.get_watermark_offsets(place, cached=True)[1]
        except KafkaException:
            return True
        return not 0 <= high <= offset

    def _left(self, _consumer: Consumer, partitions: _Left) -> None:
        self._heard.append(partitions)

    def _forget(self, partitions: _Left) -> None:
        for place in partitions:
            self._room.leave(place.partition)
            self._committed.pop(place.partition, None)

    async def _hear(self, record: Record) -> None:
        failure = await failure_of(partial(self._apply, record))
        if failure is not None:
            logger.error(
                "an episode cannot be added to its group; it goes to dead.letters "
                "(see `fulgurite dlq list`)",
                partition=record.partition,
                offset=record.offset,
                error=words_of(failure),
                exc_info=failure,
            )
            record = msgspec.structs.replace(record, error=words_of(failure))
        if failure is not None or not isinstance(record.event, Episode):
            await bury(self._producer, self._kafka, self._group_id(), _STAGE, record)
        metrics.count("fulgurite_consumed_records_total", EPISODES.name)
        self._room.pass_by(
            record.partition, record.offset, record.event.event_time if record.event else 0
        )

    async def _apply(self, record: Record) -> None:
        if isinstance(record.event, Episode) and self._is_ours(record.event):
            self._room.apply(record.partition, record.offset, await self._readable(record.event))

    def _is_ours(self, episode: Episode) -> bool:
        declaration = episode.declaration
        if self._judge.is_live:
            return (
                declaration is None
                and episode.mode is Mode.live
                and not episode.will_retry
                and wants_fallback(episode.calls)
            )
        return declaration is not None and self._run_id in (None, declaration.run_id)

    async def _readable(self, episode: Episode) -> Episode:
        """Return the episode with its payloads; without its calls, if they cannot be read."""
        try:
            return await asyncio.to_thread(redeemed_episode, episode)
        except BadClaim as error:
            logger.warning(
                "an episode's payloads cannot be read; it is judged as if it had no messages",
                rollout_id=episode.rollout_id,
                error=str(error),
            )
            return msgspec.structs.replace(episode, calls=())

    async def _judge_group(self, group: Waiting) -> None:
        """Judge a group; one that cannot be judged goes to `dead.letters` and gets no rewards."""
        failure = await failure_of(partial(self._reward, group))
        if failure is not None:
            logger.error(
                "a group cannot be judged and gets no rewards; it goes to dead.letters "
                "(see `fulgurite dlq list`)",
                group_id=group.group_id,
                error=words_of(failure),
                exc_info=failure,
            )
            # The letter names no actions: they are in their episodes, and the rewarder closes the
            # group without these rewards some time after its deadline.
            what = Lost(
                derive_id(self._group_id(), group.group_id, group.offset),
                group.began(),
                group.group_id,
                (),
            )
            error = f"group {group.group_id} cannot be judged: {words_of(failure)}"
            letter = lost(what, self._kafka, group.partition, _STAGE, type(failure).__name__, error)
            await asyncio.gather(
                *(
                    self._producer.publish(DEAD_LETTERS, key, part)
                    for key, part in addressed(letter)
                )
            )
        self._room.mark_done(group)

    async def _reward(self, group: Waiting) -> None:
        async with self._turns:
            if not (group.is_complete or self._judge.is_live):
                await self._recall(group)
            revisions = group.revisions()
            known = self._judged.get(group.group_id) == revisions
            rewards = [] if known else await self._judge.judge(group.attempts(), self._model)
        for error in sorted({reward.error for reward in rewards if reward.error}):
            logger.warning("no score", group_id=group.group_id, error=error)
        await asyncio.gather(
            *(self._producer.publish(AGENT_REWARDS, reward.group_id, reward) for reward in rewards)
        )
        self._remember(group.group_id, revisions)

    def _remember(self, group_id: str, revisions: frozenset[str]) -> None:
        self._judged.pop(group_id, None)
        self._judged[group_id] = revisions
        if len(self._judged) > _REMEMBERED:
            del self._judged[next(iter(self._judged))]

    async def _recall(self, group: Waiting) -> None:
        """Add the group's episodes of before this start, or before it was last judged."""
        keys = {group.group_id.encode()}

        def read() -> list[Episode]:
            records = read_all(
                self._kafka,
                EPISODES,
                self._codec,
                partitions=[group.partition],
                since_ms=group.began(),
                keys=keys,
            )
            return [record.event for record in records if isinstance(record.event, Episode)]

        for episode in await asyncio.to_thread(read):
            group.apply(await self._readable(episode))

    def _commit(self, consumer: Consumer) -> None:
        news = {
            place: end
            for place, end in self._room.committable().items()
            if self._committed.get(place) != end
        }
        if not news:
            return
        topic = self._kafka.topic(EPISODES)
        # Another judge may have the partition by now; it judges these groups again.
        with suppress(KafkaException):
            consumer.commit(
                offsets=[TopicPartition(topic, place, end) for place, end in news.items()],
                asynchronous=False,
            )
            self._committed |= news

    def _group_id(self) -> str:
        scope = self._run_id or ("live" if self._judge.is_live else "all")
        return f"{self._kafka.topic_prefix}judge.{scope}.{self._judge.name}"


async def run(arguments: Sequence[str]) -> int:
    """Run until stopped; returns the exit code of `serve`."""
    parser = argparse.ArgumentParser(
        prog="python -m services.judge.main", description="Rank groups of trajectories by a model."
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="ALIAS",
        help="the model, as the gateway or FULGURITE_JUDGE_BASE_URL knows it",
    )
    parser.add_argument("--name", default="judge", help="name of the reward")
    parser.add_argument(
        "--rubric",
        type=Path,
        default=None,
        metavar="FILE",
        help="standards to judge by, added to the default ones",
    )
    chosen = parse_with_traffic(
        parser,
        arguments,
        of_run="judge only the groups of this run",
        of_live="judge live traffic that is opted in, where nobody votes",
    )

    def make() -> Judge:
        settings, kafka = JudgeSettings(), KafkaSettings()
        logs.configure("judge", settings.log_level)
        model = JudgeModel(cast(str, chosen.model), chosen.name, settings)
        judge = GroupJudge(
            chosen.name,
            chosen.model,
            _rubric(chosen.rubric),
            settings.max_characters,
            live=chosen.live,
        )
        check_topics(kafka)
        return Judge(judge, model, chosen.run_id, kafka, settings, chosen.since_ms)

    return await serve("judge", make)


def _rubric(added: Path | None) -> str:
    """The default rubric, and the one in the file. Raises ValueError for an unreadable file."""
    try:
        return "\n".join(filter(None, [DEFAULT_RUBRIC, added.read_text("utf-8") if added else ""]))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--rubric {added} cannot be read: {error}. Give a readable text file in UTF-8."
        ) from error


if __name__ == "__main__":
    sys.exit(run_service("judge", lambda: asyncio.run(run(sys.argv[1:]))))
