"""Reads dead letters, and sends their events back to their topics.

A redriven event is appended to its topic again, so it counts as late.
"""

from __future__ import annotations

from collections.abc import Collection

from fulgurite.avro.codec import Codec
from fulgurite.errors import CodecError
from fulgurite.events import DeadLetter, Event, EventStruct
from fulgurite.topics import DEAD_LETTERS, TOPICS, Topic
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings


class Redriven(EventStruct, frozen=True, kw_only=True):
    """The result for one dead letter."""

    letter: str
    topic: str | None
    """The topic that its event was sent to; None if it was not sent."""
    offset: int | None
    why: str | None
    """Why it was not sent."""


def read_letters(settings: KafkaSettings, codec: Codec) -> dict[str, DeadLetter]:
    """Read every dead letter once, by id, in log order. Raises LogUnavailable."""
    letters: dict[str, DeadLetter] = {}
    for record in read_all(settings, DEAD_LETTERS, codec):
        if isinstance(record.event, DeadLetter):
            letters.setdefault(record.event.event_id, record.event)
    return letters


def origin(settings: KafkaSettings, letter: DeadLetter) -> Topic | None:
    """The deployment's topic that a dead letter came from."""
    return next((topic for topic in TOPICS if settings.topic(topic) == letter.topic), None)


def content(codec: Codec, letter: DeadLetter) -> Event | str:
    """Decode the event in a dead letter, or return why that is impossible."""
    if letter.value is None:
        return (
            "the dead letter has no bytes; the event is still in its topic, where "
            "`fulgurite replay` finds it"
        )
    try:
        return codec.decode(letter.value or b"")
    except CodecError as error:
        return f"{type(error).__name__}: {error}"


def redrive(
    settings: KafkaSettings, codec: Codec, letters: Collection[DeadLetter], *, dry_run: bool = False
) -> list[Redriven]:
    """Append the events of dead letters to the topics they came from. Raises LogUnavailable.

    Bytes that still cannot be decoded are not sent.
    """
    producer = None if dry_run or not letters else EventProducer(settings, codec, "fulgurite-dlq")
    try:
        return [_redrive(settings, codec, letter, producer) for letter in letters]
    finally:
        if producer is not None:
            producer.close()


def _redrive(
    settings: KafkaSettings, codec: Codec, letter: DeadLetter, producer: EventProducer | None
) -> Redriven:
    topic, event = origin(settings, letter), content(codec, letter)
    if topic is None:
        return Redriven(
            letter=letter.event_id,
            topic=None,
            offset=None,
            why=f"{letter.topic} is not a topic of this deployment (FULGURITE_TOPIC_PREFIX)",
        )
    if isinstance(event, str):
        return Redriven(letter=letter.event_id, topic=None, offset=None, why=event)
    if not isinstance(event, topic.carries):
        return Redriven(
            letter=letter.event_id,
            topic=None,
            offset=None,
            why=f"{topic.name} does not hold events of type {type(event).__name__}",
        )
    offset = None
    if producer is not None:
        offset = producer.publish_sync(
            topic, (letter.key or b"").decode("utf-8", "replace"), event
        ).offset
    return Redriven(letter=letter.event_id, topic=topic.name, offset=offset, why=None)
