"""Where a new consumer group of `episodes` begins, on a real broker."""

from __future__ import annotations

import time
from typing import cast

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from fulgurite.topics import EPISODES
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.common.streaming.episode_readers import episodes_consumer, subscribe
from services.local_stack.kafka_local import LocalKafka

pytestmark = [pytest.mark.engine]

HOUR_MS = 3_600_000


class Log:
    """`episodes`, with records of any time."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self.topic = kafka.topic(EPISODES)
        self._producer = Producer(kafka.client_config())

    def append(self, partition: int, value: str, at: int) -> None:
        self._producer.produce(self.topic, value.encode(), partition=partition, timestamp=at)
        self._producer.flush(30)


def read(consumer: Consumer, count: int) -> set[str]:
    """The next values; no other comes soon after them."""
    messages: list[Message] = []
    deadline = time.monotonic() + 60
    while len(messages) < count and time.monotonic() < deadline:
        messages += filter(None, [consumer.poll(0.2)])
    messages += filter(None, [consumer.poll(1.0)])
    return {cast(bytes, message.value()).decode() for message in messages}


def test_a_worker_of_a_run_reads_from_the_runs_start_on_and_goes_on_where_it_committed(
    kafka: LocalKafka, topic_prefix: str
) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, topic_prefix=topic_prefix)
    create_topics(settings)
    log, now = Log(settings), int(time.time() * 1000)
    log.append(0, "old 0", now - HOUR_MS)
    log.append(0, "new 0", now)
    log.append(1, "old 1", now - HOUR_MS)
    since = now - HOUR_MS // 2

    first = episodes_consumer(settings, f"{topic_prefix}group", 10.0)
    subscribe(first, settings, since)
    assert read(first, 1) == {"new 0"}
    log.append(1, "new 1", now)
    log.append(2, "new 2", now)
    assert read(first, 2) == {"new 1", "new 2"}
    first.commit(offsets=[TopicPartition(log.topic, 0, 2)], asynchronous=False)
    first.close()

    log.append(0, "late 0", now - HOUR_MS)
    second = episodes_consumer(settings, f"{topic_prefix}group", 10.0)
    subscribe(second, settings, since)
    assert read(second, 3) == {"late 0", "new 1", "new 2"}
    second.close()

    by_hand = episodes_consumer(settings, f"{topic_prefix}by-hand", 10.0)
    subscribe(by_hand, settings, None)
    assert read(by_hand, 6) == {"old 0", "new 0", "late 0", "old 1", "new 1", "new 2"}
    by_hand.close()
