"""Reads the records of one group from a topic of the log, from the newest back.

A group's id is its records' key and so determines the partition. Most groups' ids hold the time of
the first call, and no record before it is read. A time limit bounds each search. Blocking.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from fulgurite.avro.codec import Codec
from fulgurite.events import Event
from fulgurite.ids import minted_at
from fulgurite.topics import Topic, partition_of
from services.common.kafka.consumer import make_consumer, read_message, read_until, watermarks
from services.common.kafka.delivery import Delivery
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.clock import now_ms

_TIMEOUT_S = 5.0
"""Seconds without an answer after which a broker counts as away."""
_SKEW_MS = 60_000
"""How much the clocks of gateways may differ."""
_FIRST_STEP, _LONGEST_STEP = 500, 50_000
"""Records in a step back, first and at most. Most records that are searched for are recent, so
steps begin small.
"""


class SearchTooLong(Exception):
    """The time limit was reached before all records had been read."""


class LogSearch:
    """Searches with one consumer."""

    def __init__(self, settings: KafkaSettings, codec: Codec, consumer: Consumer) -> None:
        self._settings = settings
        self._codec = codec
        self._consumer = consumer

    def newest_first(self, topic: Topic, group_id: str, deadline: float) -> Iterator[list[Event]]:
        """Yield the events of a group step by step, each step older than the one before; within a
        step they are in the order of the log. `deadline`: the monotonic clock's. Raises
        SearchTooLong, KafkaException, LogUnavailable.
        """
        where = self._place(topic, partition_of(group_id.encode(), topic.partitions))
        low, high = watermarks(self._consumer, where, _TIMEOUT_S)
        began = _began_at(group_id)
        first = low if began is None else max(low, self._offset_at(where, began, high))
        step, end = _FIRST_STEP, high
        while end > first:
            if time.monotonic() > deadline:
                raise SearchTooLong
            start = max(first, end - step)
            yield self._read(where, start, end, group_id)
            step, end = min(4 * step, _LONGEST_STEP), start

    def at(self, topic: Topic, place: Delivery, group_id: str) -> list[Event]:
        """The event at a place, if it is still there and of that group."""
        where = self._place(topic, place.partition)
        low, high = watermarks(self._consumer, where, _TIMEOUT_S)
        return self._read(where, max(low, place.offset), min(high, place.offset + 1), group_id)

    def _place(self, topic: Topic, partition: int) -> TopicPartition:
        return TopicPartition(self._settings.topic(topic), partition)

    def _offset_at(self, where: TopicPartition, time_ms: int, high: int) -> int:
        """The first record of that time or later."""
        [found] = self._consumer.offsets_for_times(
            [TopicPartition(where.topic, where.partition, time_ms)], timeout=_TIMEOUT_S
        )
        return found.offset if found.offset >= 0 else high

    def _read(self, where: TopicPartition, start: int, end: int, group_id: str) -> list[Event]:
        key = group_id.encode()
        events = (
            read_message(message, self._codec).event
            for message in self._messages(where, start, end)
            if message.key() == key
        )
        return [event for event in events if event is not None]

    def _messages(self, where: TopicPartition, start: int, end: int) -> Iterator[Message]:
        if start < end:
            self._consumer.assign([TopicPartition(where.topic, where.partition, start)])
            yield from read_until(self._consumer, {(where.topic, where.partition): end})


def _began_at(group_id: str) -> int | None:
    """The time before which the group has no record; None if its id does not say. The id of a
    session that a user named holds no time, and a few of these look like one in the future.
    """
    minted = minted_at(group_id)
    return None if minted is None or minted > now_ms() + _SKEW_MS else minted - _SKEW_MS


@contextmanager
def open_search(settings: KafkaSettings, codec: Codec, *topics: Topic) -> Generator[LogSearch]:
    """A search of these topics, with a consumer of its own, so that several threads may search at
    once. What Kafka raises within it becomes LogUnavailable, which names the topics: agents see
    the message, and a broker's address is not theirs.
    """
    try:
        with closing(make_consumer(settings)) as consumer:
            yield LogSearch(settings, codec, consumer)
    except KafkaException as error:
        names = ", ".join(settings.topic(topic) for topic in topics)
        raise LogUnavailable(f"{names}: {error}") from error
