"""Run a reward worker: read `episodes`, call the reward function, write `agent.rewards`.

    python -m services.rewards.worker --reward rewards.py:fn --name reward --run-id RUN

With `--live`, only live traffic that is opted in is scored, and its rewards count where nobody
votes. Every final attempt of the run (of every run, without `--run-id`) is scored: at least once, a
bounded number at a time. A reward's id derives from its name, the function's source and the
episode's revision, so that scoring again repeats the same event. A function that fails gives a
reward without a value and with the error's text. Offsets are committed in order, after the rewards'
acknowledgements.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from typing import cast

import msgspec
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from fulgurite.calls.training_use import wants_fallback
from fulgurite.enums import Mode
from fulgurite.errors import BadClaim
from fulgurite.events import Episode
from fulgurite.topics import AGENT_REWARDS, EPISODES
from services.common.blobs.blob_store import redeemed_episode
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import Record, read_message
from services.common.kafka.dead_letters import words_of
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
from services.rewards.plugins import RewardPlugin
from services.rewards.settings import RewardWorkerSettings

logger = logs.get()

_STAGE = "reward-worker"
_POLL_S = 0.2
"""How soon a stop is noticed; an episode wakes the poll at once."""


class RewardWorker:
    """Scores episodes until stopped."""

    def __init__(
        self,
        plugin: RewardPlugin,
        run_id: str | None,
        kafka: KafkaSettings,
        settings: RewardWorkerSettings,
        since_ms: int | None = None,
    ) -> None:
        """`since_ms`: begin at episodes of this time (Unix milliseconds), not at the first."""
        self._plugin = plugin
        self._run_id = run_id
        self._kafka = kafka
        self._settings = settings
        self._since_ms = since_ms
        self._codec = make_codec()
        self._producer = EventProducer(kafka, self._codec, "fulgurite-reward-worker")
        self._sandbox = plugin.sandbox(settings.limits())
        self._stopping = False

    def stop(self) -> None:
        """Finish the episodes that are being scored, and return from `run`."""
        self._stopping = True

    async def run(self) -> None:
        """Score until stopped. Episodes that were not committed are scored again after a restart.

        Raises KafkaException, LogUnavailable.
        """
        consumer = episodes_consumer(
            self._kafka, self._group_id(), self._settings.session_timeout_s
        )
        subscribe(consumer, self._kafka, self._since_ms)
        watch_lag(consumer, self._kafka)
        logger.info("ready", reward=self._plugin.source, run_id=self._run_id)
        try:
            while not self._stopping:
                messages = await asyncio.to_thread(_consume, consumer, self._settings.concurrency)
                if consumer.memberid():
                    liveness.beat()
                if messages:
                    await asyncio.gather(*(self._handle(message) for message in messages))
                    await asyncio.to_thread(_commit, consumer, messages)
        finally:
            consumer.close()
            self._producer.close()
            self._sandbox.close()

    def _group_id(self) -> str:
        scope = self._run_id or ("live" if self._plugin.is_fallback else "all")
        return f"{self._kafka.topic_prefix}reward-worker.{scope}.{self._plugin.name}"

    async def _handle(self, message: Message) -> None:
        """Score an episode; one that cannot be scored goes to `dead.letters`."""
        record = read_message(message, self._codec)
        failure = await failure_of(partial(self._score, record), (BadClaim,))
        if failure is not None:
            logger.warning(
                "an episode cannot be scored; it goes to dead.letters (see `fulgurite dlq list`)",
                partition=record.partition,
                offset=record.offset,
                error=words_of(failure),
            )
            record = msgspec.structs.replace(record, error=words_of(failure))
        if failure is not None or not isinstance(record.event, Episode):
            await bury(self._producer, self._kafka, self._group_id(), _STAGE, record)
        metrics.count("fulgurite_consumed_records_total", EPISODES.name)

    async def _score(self, record: Record) -> None:
        if not isinstance(record.event, Episode) or not self._is_ours(record.event):
            return
        # The function sees payloads stored outside Kafka, too.
        episode = await asyncio.to_thread(redeemed_episode, record.event)
        rewards, failure = await self._plugin.score(self._sandbox, episode)
        if failure is not None:
            logger.warning(
                "the reward function failed; the reward event has no value",
                rollout_id=episode.rollout_id,
                kind=type(failure).__name__,
                error=str(failure),
            )
        await asyncio.gather(
            *(self._producer.publish(AGENT_REWARDS, reward.group_id, reward) for reward in rewards)
        )

    def _is_ours(self, episode: Episode) -> bool:
        if self._plugin.is_fallback and not (
            episode.mode is Mode.live and wants_fallback(episode.calls)
        ):
            return False
        declaration = episode.declaration
        if self._run_id is not None and (declaration is None or declaration.run_id != self._run_id):
            return False
        return not episode.will_retry


def _consume(consumer: Consumer, most: int) -> list[Message]:
    """Wait for a message; return it with those that are there already, at most `most`."""
    first = consumer.poll(_POLL_S)
    if first is None:
        return []
    messages = [first, *consumer.consume(most - 1, timeout=0)] if most > 1 else [first]
    for message in messages:
        failure = message.error()
        if failure is not None:
            raise KafkaException(failure)
    return messages


def _commit(consumer: Consumer, messages: Sequence[Message]) -> None:
    ends: dict[tuple[str, int], int] = {}
    for message in messages:
        ends[cast(str, message.topic()), cast(int, message.partition())] = (
            cast(int, message.offset()) + 1
        )
    consumer.commit(
        offsets=[TopicPartition(topic, partition, end) for (topic, partition), end in ends.items()],
        asynchronous=False,
    )


async def run(arguments: Sequence[str]) -> int:
    """Run until stopped; returns the exit code of `serve`."""
    parser = argparse.ArgumentParser(
        prog="python -m services.rewards.worker",
        description="Score episodes with a reward function.",
    )
    parser.add_argument(
        "--reward",
        required=True,
        metavar="FILE.py:FUNCTION|builtin:NAME",
        help="the function, called with every episode",
    )
    parser.add_argument(
        "--name",
        default="reward",
        help="name of the reward if the function returns a plain number",
    )
    chosen = parse_with_traffic(
        parser,
        arguments,
        of_run="score only episodes of this run",
        of_live="score live traffic that is opted in; a vote wins over the score",
    )

    def make() -> RewardWorker:
        settings, kafka = RewardWorkerSettings(), KafkaSettings()
        logs.configure("reward-worker", settings.log_level)
        plugin = RewardPlugin(
            chosen.reward, chosen.name, settings.load_timeout_s, fallback=chosen.live
        )
        check_topics(kafka)
        return RewardWorker(plugin, chosen.run_id, kafka, settings, chosen.since_ms)

    return await serve("reward-worker", make)


if __name__ == "__main__":
    sys.exit(run_service("reward-worker", lambda: asyncio.run(run(sys.argv[1:]))))
