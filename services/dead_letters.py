"""Dead letters: what could not be used, why, where it lies, and its bytes.

A letter's id derives from what it is about and who gave it up, its time is that of the record or the event: buried again after a crash, it
is the same letter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fulgurite.events import DeadLetter, Episode, LlmCall
from fulgurite.ids import derive_id
from fulgurite.kinds import Mode
from fulgurite.topics import EPISODES
from fulgurite.trajectories import successful_actions
from services.kafka import KafkaSettings, Record

NO_RECORD = -1
"""The offset of what is in no topic."""


def unusable(record: Record, topic: str, reader: str, *, stage: str = "", actions: tuple[str, ...] = ()) -> DeadLetter:
    """About a record of `topic`, named with the prefix. Its `error`, `NAME: WORDS`, says what is wrong."""
    kind, _, words = (record.error or f"Unexpected: {type(record.event).__name__} has no place there").partition(": ")
    return DeadLetter(
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


class Lost(NamedTuple):
    """What was never written, or is of no use any more, with the actions that are lost to training with it."""

    about: str
    """What the letter's id derives from."""
    at: int
    """Event time, Unix milliseconds."""
    group_id: str
    actions: tuple[str, ...]


def lost_episode(episode: Episode) -> Lost:
    """An episode."""
    return Lost(episode.event_id, episode.event_time, episode.group_id, actions_of(episode.mode, episode.calls))


def lost(
    what: Lost, kafka: KafkaSettings, partition: int, stage: str, error_type: str, error: str, value: bytes | None = None
) -> DeadLetter:
    """About what would be in `episodes`; `value` where a redriven one may still be of use."""
    return DeadLetter(
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


def actions_of(mode: Mode, calls: Iterable[LlmCall]) -> tuple[str, ...]:
    """Those that are lost to training with these calls."""
    return tuple(action for call in calls for action in successful_actions(call)) if mode is Mode.train else ()


def key_of(letter: DeadLetter) -> str:
    """That it is published under: the key of what it is about."""
    return (letter.key or b"").decode("utf-8", "replace")
