"""Reads every partition of the learner's topic from the offsets of its checkpoint.

Partitions are assigned, not subscribed. Offsets are committed only to show the lag. An offset that
is no longer in the topic stops the learner with an explanation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from fulgurite.avro.codec import Codec
from fulgurite.events import GroupClosed, Position, Tombstone, Trajectory
from fulgurite.learning.relabel import relabel
from fulgurite.topics import TRAJECTORIES, Topic
from services.common.kafka.consumer import (
    Record,
    make_consumer,
    read_message,
    read_until,
    watermarks,
)
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.lag import watch_lag
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import topic_id
from services.common.runtime import metrics
from services.learner.errors import OffsetOutOfRange

_BATCH = 200


class TrajectorySource:
    """Records of one topic. Not thread-safe."""

    def __init__(
        self,
        kafka: KafkaSettings,
        codec: Codec,
        topic: str,
        policy: str,
        rows_of: str | None = None,
    ) -> None:
        """`rows_of`: another policy, whose rows are relabelled as rows of `policy`."""
        self._policy = policy
        self._rows_of = rows_of
        self.topic: Topic = msgspec.structs.replace(TRAJECTORIES, name=topic)
        self._name = kafka.topic(self.topic)
        self._codec = codec
        self._kafka = kafka
        self._consumer = make_consumer(
            kafka, f"{kafka.topic_prefix}learner.{policy}", {"auto.offset.reset": "error"}
        )

        watch_lag(self._consumer, kafka)
        self._next: dict[int, int] = {}
        """The next offset of each partition of which any record was read."""

    @property
    def topic_name(self) -> str:
        """Name of the topic with the deployment's prefix."""
        return self._name

    def topic_id(self) -> str:
        """Kafka's own id of the topic. Raises LogUnavailable."""
        return topic_id(self._kafka, self._name)

    def start(self, positions: Iterable[Position]) -> None:
        """Assign every partition, from the given positions or from the beginning."""
        given = {position.partition: position.offset for position in positions}
        self._next = dict(given)
        self._consumer.assign(
            [
                TopicPartition(self._name, partition, given.get(partition, OFFSET_BEGINNING))
                for partition in range(self.topic.partitions)
            ]
        )

    def read(self, timeout_s: float) -> Iterator[Record]:
        """Yield new records, after waiting at most `timeout_s`. Raises OffsetOutOfRange."""
        messages = self._consumer.consume(1, timeout_s)
        if messages:
            messages += self._consumer.consume(_BATCH, 0)
        for message in messages:
            error = message.error()
            if error is None:
                metrics.count("fulgurite_consumed_records_total", self.topic.name)
                record = read_message(message, self._codec)
                self._next[record.partition] = record.offset + 1
                yield msgspec.structs.replace(
                    record, event=relabel(record.event, self._rows_of, self._policy)
                )
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:  # pyright: ignore[reportPrivateUsage]
                raise OffsetOutOfRange(
                    f"{self._name} no longer has the offset to resume from ({error.str()}): "
                    "retention deleted records that were not trained. Train under another "
                    "FULGURITE_POLICY, or on a topic that `fulgurite replay` wrote from an archive."
                )
            elif error.fatal():
                raise LogUnavailable(f"{self._name}: {error.str()}")

    def is_at_end(self) -> bool:
        """Whether all that the topic holds now was read. Raises LogUnavailable."""
        try:
            for partition in range(self.topic.partitions):
                low, high = watermarks(self._consumer, TopicPartition(self._name, partition))
                if self._next.get(partition, low) < high:
                    return False
        except KafkaException as error:
            raise LogUnavailable(f"{self._name}: {error}") from error
        return True

    def read_again(self, partition: int, first: int, last: int) -> Iterator[Record]:
        """Yield the records between two offsets, both included. Raises LogUnavailable."""
        consumer = make_consumer(self._kafka)
        try:
            consumer.assign([TopicPartition(self._name, partition, first)])
            for message in read_until(consumer, {(self._name, partition): last + 1}):
                record = read_message(message, self._codec)
                yield msgspec.structs.replace(
                    record, event=relabel(record.event, self._rows_of, self._policy)
                )
        finally:
            consumer.close()

    def show(self, positions: Iterable[Position]) -> None:
        """Commit offsets to the consumer group to show its lag; they are never read back."""
        offsets = [
            TopicPartition(self._name, position.partition, position.offset)
            for position in positions
        ]
        if offsets:
            self._consumer.commit(offsets=offsets, asynchronous=True)

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()


def trainable(record: Record) -> Trajectory | Tombstone | GroupClosed | None:
    """The event of a record, if it is one for a learner."""
    return record.event if isinstance(record.event, Trajectory | Tombstone | GroupClosed) else None
