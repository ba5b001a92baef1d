"""Follows topics: what they hold from a chosen time on, then what is written to them.

It needs no consumer group and commits nothing. Partitions are read in offset order; between
partitions and topics there is no order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self, cast

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from fulgurite.avro.codec import Codec
from fulgurite.topics import Topic
from services.common.kafka.consumer import (
    READ_TIMEOUT_S,
    Record,
    make_consumer,
    read_message,
    watermarks,
)
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.lag import watch_lag
from services.common.kafka.settings import KafkaSettings

BATCH = 500
"""A poll returns one record more than this at most. More records are there already if it does."""
_POLL_S = 0.2


class Followed(NamedTuple):
    """A record and the topic that it is in."""

    topic: Topic
    record: Record


class LogFollower:
    """Reads topics and goes on as they grow. Close it, or use it in a `with` block.

    All methods raise LogUnavailable when Kafka fails.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        codec: Codec,
        topics: Sequence[Topic],
        *,
        since_ms: int | Mapping[Topic, int] | None = None,
        newest: int | None = None,
    ) -> None:
        """Begin at the beginning of each topic. `since_ms`: at the first records of this time
        (Unix milliseconds), in all topics or in those that it names. `newest`: so many offsets
        before the end of each partition.
        """
        self._kafka = settings
        self._codec = codec
        self._topics = {settings.topic(topic): topic for topic in topics}
        self._left: dict[tuple[str, int], int] = {}
        """By partition that is not caught up yet, the end that it had."""
        self._next: dict[tuple[str, int], int] = {}
        """By partition, the offset to read next."""
        times = dict.fromkeys(topics, since_ms) if isinstance(since_ms, int) else since_ms or {}
        self._consumer = make_consumer(settings)
        try:
            self._consumer.assign(list(self._starts(self._consumer, times, newest)))
        except KafkaException as error:
            self._consumer.close()
            raise _unavailable(self._topics, error) from error

    def __enter__(self) -> Self:
        """Return this follower."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    @property
    def caught_up(self) -> bool:
        """Whether everything is read that was in the topics at the start."""
        return not self._left

    def watch_lag(self) -> None:
        """Show how far it is behind in the metrics of this process, of which it is the consumer."""
        watch_lag(self._consumer, self._kafka)

    def poll(self, timeout_s: float) -> list[Followed]:
        """Return the next records; none if there are none within `timeout_s` seconds."""
        try:
            messages = self._consumer.consume(1, timeout=timeout_s)
            if messages:
                messages += self._consumer.consume(BATCH, timeout=0)
        except KafkaException as error:
            raise _unavailable(self._topics, error) from error
        return [self._read(message) for message in messages]

    def records(
        self, stop: threading.Event, *, once: bool = False, poll_s: float = _POLL_S
    ) -> Iterator[Followed]:
        """Yield records until `stop` is set; with `once`, those that were there at the start."""
        while not stop.is_set() and not (once and self.caught_up):
            yield from self.poll(poll_s)

    def catch_up(self) -> Iterator[Followed]:
        """Yield all that is in the topics now and was not read yet, and perhaps some more."""
        try:
            for (name, partition), following in self._next.items():
                _, end = watermarks(self._consumer, TopicPartition(name, partition))
                if following < end:
                    self._left[name, partition] = end
        except KafkaException as error:
            raise _unavailable(self._topics, error) from error
        heard = time.monotonic()
        while not self.caught_up:
            found = self.poll(_POLL_S)
            if found:
                heard = time.monotonic()
            elif time.monotonic() - heard > READ_TIMEOUT_S:
                raise LogUnavailable(
                    f"Kafka sent nothing for {READ_TIMEOUT_S:.0f} s. Check that the brokers are up "
                    "and that every partition has a leader."
                )
            yield from found

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _read(self, message: Message) -> Followed:
        failure = message.error()
        name = cast(str, message.topic())
        if failure is not None:
            raise LogUnavailable(f"{name}: {failure.str()}")
        record = read_message(message, self._codec)
        place = name, record.partition
        self._next[place] = record.offset + 1
        if record.offset + 1 >= self._left.get(place, record.offset + 2):
            del self._left[place]
        return Followed(self._topics[name], record)

    def _starts(
        self, consumer: Consumer, since_ms: Mapping[Topic, int], newest: int | None
    ) -> Iterator[TopicPartition]:
        """Where to begin; notes the ends."""
        for name, topic in self._topics.items():
            for partition in range(topic.partitions):
                low, high = watermarks(consumer, TopicPartition(name, partition))
                first = low if newest is None else max(low, high - newest)
                since = since_ms.get(topic)
                if since is not None and high > low:
                    asked = TopicPartition(name, partition, since)
                    (found,) = consumer.offsets_for_times([asked], timeout=READ_TIMEOUT_S)
                    # Negative: no record is so young.
                    first = found.offset if found.offset >= 0 else high
                if high > first:
                    self._left[name, partition] = high
                self._next[name, partition] = first
                yield TopicPartition(name, partition, first)


def _unavailable(names: dict[str, Topic], error: KafkaException) -> LogUnavailable:
    return LogUnavailable(f"{', '.join(names)}: {error}")
