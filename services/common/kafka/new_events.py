"""Reads topics from a time on, and at each call what came since the one before."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import cast

from confluent_kafka import KafkaException, TopicPartition

from fulgurite.avro.codec import Codec
from fulgurite.events import Event
from fulgurite.topics import Topic
from services.common.kafka.consumer import (
    READ_TIMEOUT_S,
    make_consumer,
    read_message,
    watermarks,
)
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings

_BATCH = 500
_POLL_S = 0.2


class NewEvents:
    """The events of some topics from `since_ms` on. Close it at the end."""

    def __init__(
        self, kafka: KafkaSettings, codec: Codec, topics: Sequence[Topic], since_ms: int
    ) -> None:
        """Raises LogUnavailable. `since_ms`: record time, Unix milliseconds."""
        self._codec = codec
        self._consumer = make_consumer(kafka)
        places = [
            TopicPartition(kafka.topic(topic), partition, since_ms)
            for topic in topics
            for partition in range(topic.partitions)
        ]
        try:
            found = self._consumer.offsets_for_times(places, timeout=READ_TIMEOUT_S)
            self._next = {
                (place.topic, place.partition): (
                    place.offset if place.offset >= 0 else watermarks(self._consumer, place)[1]
                )
                for place in found
            }
            self._consumer.assign(
                [TopicPartition(*place, offset) for place, offset in self._next.items()]
            )
        except KafkaException as error:
            self.close()
            raise LogUnavailable(str(error)) from error

    def read(self) -> Iterator[Event]:
        """Yield the events up to the topics' ends at the time of the call, and perhaps some more.

        Records that cannot be decoded are passed over. Raises LogUnavailable.
        """
        try:
            yield from self._read()
        except KafkaException as error:
            raise LogUnavailable(str(error)) from error

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _read(self) -> Iterator[Event]:
        ends = {
            place: watermarks(self._consumer, TopicPartition(*place))[1] for place in self._next
        }
        heard = time.monotonic()
        while any(self._next[place] < end for place, end in ends.items()):
            messages = self._consumer.consume(_BATCH, timeout=_POLL_S)
            if messages:
                heard = time.monotonic()
            elif time.monotonic() - heard > READ_TIMEOUT_S:
                raise LogUnavailable(
                    f"Kafka sent nothing for {READ_TIMEOUT_S:.0f} s. Check that the brokers are up "
                    "and that every partition has a leader."
                )
            for message in messages:
                failure = message.error()
                if failure is not None:
                    raise KafkaException(failure)
                place = cast(str, message.topic()), cast(int, message.partition())
                self._next[place] = cast(int, message.offset()) + 1
                event = read_message(message, self._codec).event
                if event is not None:
                    yield event
