"""One event on its way to Kafka: sent, and then acknowledged or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from fulgurite.topics import Topic
from services.common.kafka.errors import EventTooLarge, LogUnavailable

OnDelivery = Callable[[KafkaError | None, Message], None]
"""librdkafka's callback."""

EncodedEvent = tuple[str, bytes, bytes, dict[str, str | bytes | None]]
"""The topic's name on the broker, value, key, headers."""


class Delivery(msgspec.Struct, frozen=True):
    """The place of an acknowledged event."""

    partition: int
    offset: int


def send(kafka: Producer, topic: Topic, encoded: EncodedEvent, on_delivery: OnDelivery) -> None:
    """Put an event into librdkafka's queue. Raises LogUnavailable."""
    name, value, key, headers = encoded
    try:
        kafka.produce(name, value, key, on_delivery=on_delivery, headers=headers)
    except BufferError as error:
        raise LogUnavailable(
            f"{topic.name}: the producer's queue is full, because Kafka does not keep up"
        ) from error
    except KafkaException as error:
        raise refusal_of(topic, cast(KafkaError, error.args[0])) from error


def refusal_of(topic: Topic, error: KafkaError) -> LogUnavailable:
    """Return the exception for an event that was not acknowledged."""
    kind = EventTooLarge if error.code() == KafkaError.MSG_SIZE_TOO_LARGE else LogUnavailable
    return kind(f"{topic.name}: {error.str()}")
