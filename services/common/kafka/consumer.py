"""Consumers and bounded reads: from one partition's watermarks to everything a topic holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from fulgurite.avro.codec import Codec
from fulgurite.errors import CodecError
from fulgurite.events import Event
from fulgurite.topics import MAX_MESSAGE_BYTES, Topic
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings

logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 30.0
"""A broker that is silent for this long counts as unavailable."""

_LEADERLESS = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError._DESTROY_BROKER,  # pyright: ignore[reportPrivateUsage]
    }
)
"""Errors that last until a broker leads the partition again."""

_METADATA_S = 2.0
_BATCH_S = 0.05


class Record(msgspec.Struct, frozen=True):
    """A record as read. When its bytes cannot be decoded, `event` is None and `error` says why."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes
    event: Event | None
    error: str | None


def make_consumer(
    settings: KafkaSettings, group_id: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Consumer:
    """Return a consumer that starts at the beginning and commits nothing by itself.

    `overrides`: librdkafka's settings that differ from ours.
    """
    return Consumer(
        {
            **settings.client_config(),
            "group.id": group_id or f"{settings.topic_prefix}reader",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": MAX_MESSAGE_BYTES,
            "fetch.wait.max.ms": 100,
            **(overrides or {}),
        },
        logger=logger,
    )


def watermarks(
    consumer: Consumer, place: TopicPartition, timeout_s: float = READ_TIMEOUT_S
) -> tuple[int, int]:
    """Return the first offset and the end of a partition. Raises KafkaException.

    While brokers start or fail, a partition has no leader for some time. This function waits for
    one, but not for a topic that a broker says it does not have.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return consumer.get_watermark_offsets(place, timeout=timeout_s)
        except KafkaException as error:
            if time.monotonic() > deadline or not _is_transient(
                consumer, place, cast(KafkaError, error.args[0]).code()
            ):
                raise
            time.sleep(0.2)


def _is_transient(consumer: Consumer, place: TopicPartition, code: int) -> bool:
    """Whether an error goes away without anybody's help."""
    if code != KafkaError._UNKNOWN_PARTITION:  # pyright: ignore[reportPrivateUsage]
        return code in _LEADERLESS
    try:
        known = consumer.list_topics(place.topic, timeout=_METADATA_S).topics.get(place.topic)
    except KafkaException:
        return True
    return known is not None and (
        known.error is None or known.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART
    )


def read_until(
    consumer: Consumer, ends: Mapping[tuple[str, int], int], batch: int = 500
) -> Iterator[Message]:
    """Yield the messages of the assigned partitions below `ends` (by topic and partition).

    Raises LogUnavailable if the broker is silent for `READ_TIMEOUT_S`.
    """
    left = dict(ends)
    heard = time.monotonic()
    while left:
        # `consume(batch)` would wait for a full batch or its time-out, also at the end of the
        # topic: so wait for one message, and take what has arrived with it.
        messages = consumer.consume(1, timeout=_BATCH_S)
        if messages:
            messages += consumer.consume(batch, timeout=0)
            heard = time.monotonic()
        elif time.monotonic() - heard > READ_TIMEOUT_S:
            raise LogUnavailable(
                f"Kafka sent nothing for {READ_TIMEOUT_S:.0f} s, before these ends were reached: "
                f"{left}. Check that the brokers are up and that every partition has a leader."
            )
        for message in messages:
            failure = message.error()
            if failure is not None:
                raise LogUnavailable(f"{message.topic()}: {failure.str()}")
            place, offset = (
                (cast(str, message.topic()), cast(int, message.partition())),
                cast(int, message.offset()),
            )
            end = left.get(place, 0)
            if offset < end:
                yield message
            if offset + 1 >= end and end:
                del left[place]


def read_message(message: Message, codec: Codec) -> Record:
    """Decode a message that bears no error. Never raises: `error` tells of undecodable bytes."""
    value = message.value() or b""
    event: Event | None = None
    problem: str | None = None
    try:
        event = codec.decode(value)
    except CodecError as error:
        problem = f"{type(error).__name__}: {error}"
    return Record(
        partition=cast(int, message.partition()),
        offset=cast(int, message.offset()),
        timestamp=message.timestamp()[1],
        key=message.key(),
        value=value,
        event=event,
        error=problem,
    )


def read_all(
    settings: KafkaSettings,
    topic: Topic,
    codec: Codec,
    *,
    partitions: list[int] | None = None,
    since_ms: int | None = None,
    newest: int | None = None,
    keys: Collection[bytes] | None = None,
) -> Iterator[Record]:
    """Yield what a topic holds at the time of the call, each partition in offset order.

    `since_ms`: only records from this record time on (Unix milliseconds). `newest`, without
    `since_ms`: only so many offsets at the end of each partition. `keys`: only records with these
    keys. Raises LogUnavailable when the broker is silent.
    """
    name = settings.topic(topic)
    consumer = make_consumer(settings)
    try:
        chosen = range(topic.partitions) if partitions is None else partitions
        starts: list[TopicPartition] = []
        ends: dict[tuple[str, int], int] = {}
        for partition in chosen:
            low, high = watermarks(consumer, TopicPartition(name, partition))
            if high > low:
                ends[name, partition] = high
                first = low if newest is None else max(low, high - newest)
                starts.append(
                    TopicPartition(name, partition, first if since_ms is None else since_ms)
                )
        if since_ms is not None and starts:
            found = consumer.offsets_for_times(starts, timeout=READ_TIMEOUT_S)
            starts = [tp for tp in found if 0 <= tp.offset < ends[name, tp.partition]]
            ends = {(name, tp.partition): ends[name, tp.partition] for tp in starts}
        consumer.assign(starts)
        for message in read_until(consumer, ends):
            if keys is None or message.key() in keys:
                yield read_message(message, codec)
    except KafkaException as error:
        raise LogUnavailable(f"{name}: {error}") from error
    finally:
        consumer.close()
