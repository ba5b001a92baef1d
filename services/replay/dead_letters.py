"""Dead letters: what could not be processed, and putting it back. A redriven event is appended to
its topic again, so it counts as late.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fulgurite.avro.codec import Codec
from fulgurite.errors import CodecError
from fulgurite.events import DeadLetter, Event, EventStruct
from fulgurite.topics import DEAD_LETTERS, TOPICS, Topic
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.replay.errors import NotFound


class Redriven(EventStruct, frozen=True, kw_only=True):
    """What became of one letter."""

    letter: str
    topic: str | None
    """Where its event lies again; null if it does not."""
    offset: int | None
    why: str | None
    """Why it was not put back."""


def read_letters(settings: KafkaSettings, codec: Codec) -> dict[str, DeadLetter]:
    """Every letter once, by id, in the order of the log. Raises LogUnavailable."""
    letters: dict[str, DeadLetter] = {}
    for record in read_all(settings, DEAD_LETTERS, codec):
        if isinstance(record.event, DeadLetter):
            letters.setdefault(record.event.event_id, record.event)
    return letters


def chosen(letters: dict[str, DeadLetter], names: Iterable[str]) -> list[DeadLetter]:
    """Letters by id or by the unambiguous beginning of one. Raises NotFound."""
    found: list[DeadLetter] = []
    for name in names:
        fitting = [letter for event_id, letter in letters.items() if event_id.startswith(name)]
        if len(fitting) != 1:
            raise NotFound(f"{len(fitting) or 'no'} dead letters begin with {name!r}")
        found += fitting
    return found


def origin(settings: KafkaSettings, letter: DeadLetter) -> Topic | None:
    """The deployment's topic that a letter is about."""
    return next((topic for topic in TOPICS if settings.topic(topic) == letter.topic), None)


def content(codec: Codec, letter: DeadLetter) -> Event | str:
    """The event in a letter, or why its bytes cannot be read."""
    if letter.value is None:
        return (
            "the letter is without bytes; what it is about is still in the log, where a replay "
            "finds it"
        )
    try:
        return codec.decode(letter.value or b"")
    except CodecError as error:
        return f"{type(error).__name__}: {error}"


def redrive(
    settings: KafkaSettings, codec: Codec, letters: Collection[DeadLetter], *, dry_run: bool = False
) -> list[Redriven]:
    """Append the events of letters to the topics they came from. Bytes that still cannot be read
    stay where they are.

    Raises LogUnavailable.
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
            why=f"{letter.topic} is no topic of this deployment",
        )
    if isinstance(event, str):
        return Redriven(letter=letter.event_id, topic=None, offset=None, why=event)
    if not isinstance(event, topic.carries):
        return Redriven(
            letter=letter.event_id,
            topic=None,
            offset=None,
            why=f"{type(event).__name__} has no place in {topic.name}",
        )
    offset = None
    if producer is not None:
        offset = producer.publish_sync(
            topic, (letter.key or b"").decode("utf-8", "replace"), event
        ).offset
    return Redriven(letter=letter.event_id, topic=topic.name, offset=offset, why=None)
