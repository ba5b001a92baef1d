"""Dead letters: what could not be used, why, where it lies, and its bytes.

A letter's id derives from what it is about and who gave it up, its time is that of the record or
the event: buried again after a crash, it is the same letter. Every letter fits into a message: one
that would not goes without the bytes, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.enums import Mode
from fulgurite.errors import CodecError
from fulgurite.events import DeadLetter, Episode, Event, LlmCall
from fulgurite.ids import derive_id
from fulgurite.topics import EPISODES, MAX_MESSAGE_BYTES
from fulgurite.trajectories.building import successful_actions
from services.common.kafka.consumer import Record
from services.common.kafka.settings import KafkaSettings

NO_RECORD = -1
"""The offset of what is in no topic."""

_ROOM = 256 * 1024
"""For all of a letter but its key, value and actions, and for a record's headers and framing."""
_LARGEST_KEY = 64 * 1024
"""Keys of ours are group ids, policies and aliases."""
_LONGEST_TEXT = 4_000
_ACTIONS_BYTES = 1024 * 1024
"""Of the actions that one letter names."""


def unusable(
    record: Record, topic: str, reader: str, *, stage: str = "", actions: tuple[str, ...] = ()
) -> DeadLetter:
    """About a record of `topic`, named with the prefix. Its `error`, `NAME: WORDS`, says what is
    wrong.
    """
    kind, _, words = (
        record.error or f"Unexpected: {type(record.event).__name__} has no place there"
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
    """What was never written, or is of no use any more, with the actions that are lost to training
    with it.
    """

    about: str
    """What the letter's id derives from."""
    at: int
    """Event time, Unix milliseconds."""
    group_id: str
    actions: tuple[str, ...]


def lost_episode(episode: Episode) -> Lost:
    """An episode."""
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
    """About what would be in `episodes`; `value` where a redriven one may still be of use."""
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
    """Those that are lost to training with these calls."""
    return (
        tuple(action for call in calls for action in successful_actions(call))
        if mode is Mode.train
        else ()
    )


def actions_in(codec: Codec, value: bytes) -> tuple[str, ...]:
    """Those that are lost to training with a record's bytes; none if they cannot be read."""
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
    """`NAME: WORDS` of an error, whatever those are."""
    try:
        words = str(error)
    except Exception:  # noqa: BLE001 - an error of somebody's own, whose text is made by code that fails itself
        words = "its text cannot be made"
    return f"{type(error).__name__}: {words}"


def addressed(*letters: DeadLetter) -> list[tuple[str, DeadLetter]]:
    """Letters by the keys that they are published under; one that names more actions than fit is
    followed by others that name the rest.
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
    """Within the bounds of a message, and of UTF-8."""
    words, value, key = letter.error, letter.value, letter.key
    left_out: list[str] = []
    if key is not None and len(key) > _LARGEST_KEY:
        left_out.append(f"its key of {len(key):,} bytes is cut")
        key = key[:_LARGEST_KEY]
    # The key is in the letter, and is the letter's own.
    room = (
        MAX_MESSAGE_BYTES
        - _ROOM
        - 2 * len(key or b"")
        - min(_ACTIONS_BYTES, sum(map(len, letter.actions)))
    )
    if value is not None and (left_out or len(value) > room):
        left_out.append(
            f"its {len(value):,} bytes are too many for a letter, which is without them"
        )
        value = None
    if len(words) > _LONGEST_TEXT:
        words = f"{words[:_LONGEST_TEXT]}…"
    words = "; ".join([words, *left_out])
    return msgspec.structs.replace(
        letter, error_type=_utf8(letter.error_type[:200]), error=_utf8(words), value=value, key=key
    )


def _utf8(text: str) -> str:
    """Half a surrogate pair, which UTF-8 has not, as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def key_of(letter: DeadLetter) -> str:
    """That it is published under: the key of what it is about."""
    return (letter.key or b"").decode("utf-8", "replace")
