"""Makes dead letters: a record or event that could not be used, with the error and its bytes.

A dead letter's id derives from the record or event and from the service that gave it up, and its
time is that of the record or event. So it is the same when it is written again after a crash. A
dead letter that would be larger than a message has no bytes, and its error says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.calls.training_use import is_opted_in
from fulgurite.enums import Mode
from fulgurite.errors import CodecError
from fulgurite.events import DeadLetter, Episode, Event, LlmCall
from fulgurite.ids import derive_id
from fulgurite.topics import EPISODES, MAX_MESSAGE_BYTES
from fulgurite.trajectories.building import successful_actions
from services.common.kafka.consumer import Record
from services.common.kafka.settings import KafkaSettings

NO_RECORD = -1
"""The offset of an event that is in no topic."""

_ROOM = 256 * 1024
"""Bytes for the other fields of a dead letter, and for a record's headers and framing."""
_LARGEST_KEY = 64 * 1024
"""Bytes. Keys are group ids, policies and aliases, which are much shorter."""
_LONGEST_TEXT = 4_000
_ACTIONS_BYTES = 1024 * 1024
"""Most bytes of the actions that one dead letter names."""


def unusable(
    record: Record, topic: str, reader: str, *, stage: str = "", actions: tuple[str, ...] = ()
) -> DeadLetter:
    """Make a dead letter for a record of `topic` (with the prefix).

    The record's `error` has the form `NAME: TEXT`.
    """
    kind, _, words = (
        record.error or f"Unexpected: {type(record.event).__name__} does not belong in this topic"
    ).partition(": ")
    return _fitting(
        DeadLetter(
            event_id=derive_id("dead", reader, topic, record.partition, record.offset),
            event_time=record.timestamp,
            stage=stage or reader,
            error_type=kind,
            error=words,
            topic=topic,
            partition=record.partition,
            offset=record.offset,
            key=record.key,
            value=record.value,
            actions=actions,
        )
    )


class Lost(NamedTuple):
    """An event that cannot be written or used, with the actions that are lost with it."""

    about: str
    """The dead letter's id derives from this."""
    at: int
    """Event time, Unix milliseconds."""
    group_id: str
    actions: tuple[str, ...]


def lost_episode(episode: Episode) -> Lost:
    """Describe an episode that is lost."""
    return Lost(
        episode.event_id,
        episode.event_time,
        episode.group_id,
        actions_of(episode.mode, episode.calls),
    )


def lost(
    what: Lost,
    kafka: KafkaSettings,
    partition: int,
    stage: str,
    error_type: str,
    error: str,
    value: bytes | None = None,
) -> DeadLetter:
    """Make a dead letter for an event of `episodes`; with `value` it can be redriven."""
    return _fitting(
        DeadLetter(
            event_id=derive_id("dead", stage, what.about),
            event_time=what.at,
            stage=stage,
            error_type=error_type,
            error=error,
            topic=kafka.topic(EPISODES),
            partition=partition,
            offset=NO_RECORD,
            key=what.group_id.encode(),
            value=value,
            actions=what.actions,
        )
    )


def actions_of(mode: Mode, calls: Iterable[LlmCall]) -> tuple[str, ...]:
    """The actions of these calls that the ledger counts; `mode` is their rollout's."""
    return tuple(
        action
        for call in calls
        if mode is Mode.train or is_opted_in(call)
        for action in successful_actions(call)
    )


def actions_in(codec: Codec, value: bytes) -> tuple[str, ...]:
    """The actions that the ledger counts in a record's bytes; none if these cannot be decoded."""
    try:
        event: Event = codec.decode(value, packed=True)
    except CodecError:
        return ()
    match event:
        case LlmCall():
            return actions_of(event.mode, [event])
        case Episode():
            return actions_of(event.mode, event.calls)
        case _:
            return ()


def words_of(error: BaseException) -> str:
    """Return `NAME: TEXT` of an error. Never raises."""
    try:
        words = str(error)
    except Exception:  # noqa: BLE001 - `__str__` of a foreign error may raise
        words = "its text cannot be read"
    return f"{type(error).__name__}: {words}"


def addressed(*letters: DeadLetter) -> list[tuple[str, DeadLetter]]:
    """Return dead letters with the keys to publish them under.

    One with more actions than fit is followed by others that name the rest.
    """
    return [(key_of(part), part) for letter in letters for part in _parts(letter)]


def _parts(letter: DeadLetter) -> Iterator[DeadLetter]:
    first, *others = _portions(letter.actions) or [()]
    yield msgspec.structs.replace(letter, actions=first)
    for number, actions in enumerate(others, 1):
        yield msgspec.structs.replace(
            letter, event_id=derive_id(letter.event_id, number), value=None, actions=actions
        )


def _portions(actions: Iterable[str]) -> list[tuple[str, ...]]:
    portions: list[list[str]] = []
    left = 0
    for action in actions:
        if not portions or left < len(action):
            portions.append([])
            left = _ACTIONS_BYTES
        portions[-1].append(action)
        left -= len(action)
    return [tuple(portion) for portion in portions]


def _fitting(letter: DeadLetter) -> DeadLetter:
    """Shorten a dead letter so that it fits into a message, and make its texts valid UTF-8."""
    words, value, key = letter.error, letter.value, letter.key
    left_out: list[str] = []
    if key is not None and len(key) > _LARGEST_KEY:
        left_out.append(f"its key of {len(key):,} bytes is cut")
        key = key[:_LARGEST_KEY]
    # The key counts twice: it is in the dead letter, and it is the record's key.
    room = (
        MAX_MESSAGE_BYTES
        - _ROOM
        - 2 * len(key or b"")
        - min(_ACTIONS_BYTES, sum(map(len, letter.actions)))
    )
    if value is not None and (left_out or len(value) > room):
        left_out.append(
            f"its {len(value):,} bytes are left out, because they do not fit into a message"
        )
        value = None
    if len(words) > _LONGEST_TEXT:
        words = f"{words[:_LONGEST_TEXT]}…"
    words = "; ".join([words, *left_out])
    return msgspec.structs.replace(
        letter, error_type=_utf8(letter.error_type[:200]), error=_utf8(words), value=value, key=key
    )


def _utf8(text: str) -> str:
    """Escape unpaired surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()


def key_of(letter: DeadLetter) -> str:
    """The key to publish a dead letter under: that of its record or event."""
    return (letter.key or b"").decode("utf-8", "replace")
