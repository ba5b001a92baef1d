"""Reads the topics into the index, with one consumer that is assigned every partition.

Where to read on stands in the index, beside the rows; nothing is committed to Kafka. When the
broker cannot be reached, it tries again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import cast

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from fulgurite.avro.codec import Codec
from fulgurite.errors import CodecError
from fulgurite.topics import TOPICS
from services.common.kafka.consumer import READ_TIMEOUT_S, make_consumer, watermarks
from services.common.kafka.dead_letters import words_of
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.lag import watch_lag
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import topic_ids
from services.common.runtime import liveness, logs, metrics
from services.console.index.batch import LogRecord
from services.console.index.errors import OutdatedIndex
from services.console.index.retention import compact, delete_before, delete_beyond
from services.console.index.settings import IndexSettings
from services.console.index.writer import Gap, IndexWriter, Position

logger = logs.get(__name__)

_POLL_S = 0.2
"""How soon a stop is noticed; a record wakes the poll at once."""
_GATHER_S = 0.25
"""The shortest time in which records are gathered for one transaction: each costs a write to disk,
and computes its groups from all their records.
"""
_LONGEST_GATHER_S = 1.0
"""The longest: pages follow the log within two seconds."""
_CATCH_UP_GATHER_S = 3.0
"""While more than a transaction's records wait."""
_WRITING_SHARE = 0.1
"""The share of the time that transactions should take while few records come."""
_BATCH = 20_000
_BATCH_BYTES = 96 * 1024**2
_ENDS_S = 1.0
"""Seconds between two looks at the ends of partitions, where nothing is read."""
_RETENTION_S = 60.0
_COMPACTION_S = 24 * 3600.0
_RETRY_S = 1.0
_CONSUMER = {"queued.max.messages.kbytes": 65_536, "queued.min.messages": 20_000}


def gathering_time(write_s: float) -> float:
    """How long to gather records after a transaction that took `write_s`. Seconds, both.

    A machine that is busy with training is left to it, and one with time to spare shows what
    happens at once.
    """
    return min(max(_GATHER_S, write_s / _WRITING_SHARE), _LONGEST_GATHER_S)


class IndexFollower:
    """Keeps the index up to date until stopped. Runs in one thread, which is the writer's."""

    def __init__(
        self,
        kafka: KafkaSettings,
        codec: Codec,
        writer: IndexWriter,
        settings: IndexSettings,
        now_ms: Callable[[], int],
        stop: threading.Event,
    ) -> None:
        """`stop`: set it, and `run` returns soon."""
        self._kafka = kafka
        self._codec = codec
        self._writer = writer
        self._settings = settings
        self._now_ms = now_ms
        self._topics = {kafka.topic(topic): topic for topic in TOPICS}
        self._stop = stop
        self.caught_up = threading.Event()
        """Set once what was in the log at the start is in the index."""
        self._next: dict[Position, int] = {}
        self._ends: dict[Position, int] = {}
        self._gaps: list[Gap] = []
        """Gaps that are not in the index yet."""
        self._wrote_ends_at = float("-inf")
        self._gather_s = _GATHER_S
        self._deleted_at = self._compacted_at = time.monotonic()

    def run(self) -> None:
        """Read until stopped. Raises OutdatedIndex if the log began anew, OSError, duckdb.Error."""
        while not self._stop.is_set():
            consumer = make_consumer(self._kafka, overrides=_CONSUMER)
            watch_lag(consumer, self._kafka)
            try:
                self._follow(consumer)
            except (KafkaException, LogUnavailable) as error:
                logger.warning(
                    "the topics cannot be read; trying again", retry_s=_RETRY_S, error=str(error)
                )
                self._stop.wait(_RETRY_S)
            finally:
                consumer.close()

    def _follow(self, consumer: Consumer) -> None:
        targets = self._assign(consumer)
        while not self._stop.is_set():
            records = self._records(consumer)
            self._look_at_ends(consumer)
            began = time.monotonic()
            if records or began - self._wrote_ends_at > _ENDS_S:
                self._writer.write(records, self._ends, self._gaps)
                self._gaps.clear()
                self._wrote_ends_at = time.monotonic()
                self._gather_s = gathering_time(self._wrote_ends_at - began)
                self._count(records)
            liveness.beat()
            self._delete_old()
            if not self.caught_up.is_set() and all(
                self._next[place] >= end for place, end in targets.items()
            ):
                logger.info("the index has caught up with the log")
                self.caught_up.set()

    def _assign(self, consumer: Consumer) -> dict[Position, int]:
        """Assign all partitions from where the index ends; returns the log's ends."""
        known = self._writer.positions()
        ids = self._topic_ids()
        self._gaps.clear()
        starts: list[TopicPartition] = []
        unread: list[TopicPartition] = []
        for name, topic in self._topics.items():
            for partition in range(topic.partitions):
                place = (topic.name, partition)
                low, high = watermarks(consumer, TopicPartition(name, partition))
                start = max(low, known.get(place, low))
                if place in known and known[place] > high:
                    raise OutdatedIndex(
                        f"{topic.name}[{partition}] ends at offset {high}, and the index has read "
                        f"it up to {known[place]}: the topics were made anew"
                    )
                if start > known.get(place, start) and topic.cleanup == "delete":
                    self._note_gap(place, known[place], start)
                self._next[place], self._ends[place] = start, high
                starts.append(TopicPartition(name, partition, start))
                if place not in known and topic.retention_ms > 0:
                    unread.append(starts[-1])
        self._skip_old(consumer, unread)
        unknown = self._next.keys() - known.keys()
        self._writer.begin({place: self._next[place] for place in unknown}, ids)
        consumer.assign(starts)
        return dict(self._ends)

    def _topic_ids(self) -> dict[str, str]:
        """Kafka's ids of the topics, without their prefix. Raises OutdatedIndex if one is not that
        of the topic that was read: the new one may have as many records by now.
        """
        known = self._writer.topic_ids()
        ids = topic_ids(self._kafka, self._topics)
        found = {topic.name: ids[name] for name, topic in self._topics.items()}
        for name, number in found.items():
            if known.get(name, number) != number:
                raise OutdatedIndex(
                    f"{name} has the id {number}, and the index was read from the topic "
                    f"{known[name]}: the topics were made anew"
                )
        return found

    def _skip_old(self, consumer: Consumer, places: Sequence[TopicPartition]) -> None:
        """Begin with records that the index would keep: not before its retention."""
        horizon = max(0, self._now_ms() - self._settings.retention_ms)
        asked = [TopicPartition(one.topic, one.partition, horizon) for one in places]
        found = consumer.offsets_for_times(asked, timeout=READ_TIMEOUT_S) if asked else []
        for place, begin in zip(places, found, strict=True):
            if begin.error is not None:
                raise KafkaException(begin.error)
            at = (self._topics[place.topic].name, place.partition)
            self._next[at] = place.offset = begin.offset if begin.offset >= 0 else self._ends[at]

    def _records(self, consumer: Consumer) -> list[LogRecord]:
        """Gather the records of one transaction."""
        found: list[LogRecord] = []
        size = 0
        behind = sum(self._ends[place] - offset for place, offset in self._next.items())
        until = time.monotonic() + (_CATCH_UP_GATHER_S if behind > _BATCH else self._gather_s)
        # A consumer waits for a full batch or its time-out: wait for one record, then take more.
        messages = consumer.consume(1, _POLL_S)
        while messages:
            for message in messages:
                record = self._record(message)
                found.append(record)
                size += len(record.value)
            left = until - time.monotonic()
            if left <= 0 or len(found) >= _BATCH or size >= _BATCH_BYTES or self._stop.is_set():
                break
            messages = consumer.consume(1, left)
            messages += consumer.consume(1_000, 0) if messages else []
        return found

    def _record(self, message: Message) -> LogRecord:
        failure = message.error()
        if failure is not None:
            raise KafkaException(failure)
        topic = self._topics[cast(str, message.topic())]
        partition, offset = cast(int, message.partition()), cast(int, message.offset())
        place = (topic.name, partition)
        if offset < self._next[place]:
            raise OutdatedIndex(
                f"{topic.name}[{partition}] gave offset {offset} after "
                f"{self._next[place] - 1}: the topics were made anew"
            )
        if offset > self._next[place] and topic.cleanup == "delete":
            self._note_gap(place, self._next[place], offset)
        self._next[place] = offset + 1
        value = message.value() or b""
        event, problem = None, None
        try:
            event = self._codec.decode(value, packed=True)
        except CodecError as error:
            problem = words_of(error)
        return LogRecord(
            topic.name, partition, offset, message.timestamp()[1], value, event, problem
        )

    def _note_gap(self, place: Position, start: int, end: int) -> None:
        logger.warning(
            "the log no longer has records that the index has not read",
            topic=place[0],
            partition=place[1],
            first_offset=start,
            last_offset=end - 1,
        )
        self._gaps.append((place, start, end))

    def _look_at_ends(self, consumer: Consumer) -> None:
        """Note the ends that the consumer knows; it asks no broker."""
        for name, topic in self._topics.items():
            for partition in range(topic.partitions):
                _, high = consumer.get_watermark_offsets(
                    TopicPartition(name, partition), cached=True
                )
                place = (topic.name, partition)
                self._ends[place] = max(self._ends[place], high)

    def _count(self, records: Sequence[LogRecord]) -> None:
        counts: dict[str, int] = {}
        for record in records:
            counts[record.topic] = counts.get(record.topic, 0) + 1
        for topic, number in counts.items():
            metrics.count("fulgurite_consumed_records_total", topic, by=number)

    def _delete_old(self) -> None:
        if time.monotonic() - self._deleted_at < _RETENTION_S:
            return
        delete_before(self._writer, self._now_ms() - self._settings.retention_ms)
        if time.monotonic() - self._compacted_at > _COMPACTION_S:
            compact(self._writer)
            self._compacted_at = time.monotonic()
        used = delete_beyond(self._writer, self._settings.max_bytes)
        metrics.put("fulgurite_console_index_bytes", {(): used})
        self._deleted_at = time.monotonic()
