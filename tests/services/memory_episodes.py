"""The topic `episodes` in memory, and readers of it in one consumer group: each has the partitions
that a test gives it, and goes on from what the group committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from confluent_kafka import Consumer, Message, TopicPartition

from fulgurite.avro.codec import Codec
from fulgurite.events import Event
from fulgurite.topics import EPISODES
from services.common.kafka.consumer import Record, read_message

CODEC = Codec()
_NAME = EPISODES.name
_NOTHING_S = 0.002


class MemoryEpisodes:
    """What was written, by partition, and what the group committed."""

    def __init__(self) -> None:
        self.records: dict[int, list[bytes]] = {}
        self.times: dict[int, list[int]] = {}
        self.committed: dict[int, int] = {}

    def append(self, partition: int, *events: Event | bytes, at: int = 0) -> None:
        """To the end of a partition, with the record time `at` (Unix milliseconds)."""
        values = [event if isinstance(event, bytes) else CODEC.encode(event) for event in events]
        self.records.setdefault(partition, []).extend(values)
        self.times.setdefault(partition, []).extend(at for _ in values)

    def message(self, partition: int, offset: int) -> Message:
        """As a client gives it."""
        return Message(
            topic=_NAME,
            partition=partition,
            offset=offset,
            key=b"",
            value=self.records[partition][offset],
            timestamp=(1, self.times[partition][offset]),
        )

    def read(self, partition: int) -> Iterator[Record]:
        """A partition from its beginning."""
        return (
            read_message(self.message(partition, offset), CODEC)
            for offset in range(len(self.records[partition]))
        )


class MemoryConsumer(Consumer):
    """One reader. It hears of other partitions at its next poll, and then has to give back all that
    it had first.
    """

    def __init__(self, log: MemoryEpisodes) -> None:
        self._log = log
        self._given: tuple[int, ...] | None = None
        self._positions: dict[int, int] = {}
        self._paused: set[int] = set()
        self._on_assign: Callable[[Consumer, list[TopicPartition]], None] | None = None
        self._on_revoke: Callable[[Consumer, list[TopicPartition]], None] | None = None

    def give(self, *partitions: int) -> None:
        """These are its own from the next poll on."""
        self._given = partitions

    @property
    def paused(self) -> bool:
        """Whether it reads on."""
        return bool(self._paused)

    def subscribe(self, topics: list[str], **listeners: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._on_assign = listeners.get("on_assign")
        self._on_revoke = listeners["on_revoke"]

    def memberid(self) -> str:
        return "me"

    def assignment(self) -> list[TopicPartition]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return [TopicPartition(_NAME, partition) for partition in self._positions]

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._paused |= {place.partition for place in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._paused -= {place.partition for place in partitions}

    def get_watermark_offsets(self, partition: TopicPartition, **_asked: Any) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 0, len(self._log.records.get(partition.partition, ()))

    def committed(self, partitions: list[TopicPartition], **_asked: Any) -> list[TopicPartition]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return [
            TopicPartition(_NAME, place.partition, self._log.committed.get(place.partition, -1001))
            for place in partitions
        ]

    def offsets_for_times(self, partitions: list[TopicPartition], **_: Any) -> list[TopicPartition]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found: list[TopicPartition] = []
        for place in partitions:
            times = self._log.times.get(place.partition, [])
            first = next((n for n, time in enumerate(times) if time >= place.offset), -1)
            found.append(TopicPartition(_NAME, place.partition, first))
        return found

    def assign(self, partitions: list[TopicPartition]) -> None:
        assert all(place.offset >= 0 for place in partitions), "no place that is looked up later"
        self._positions = {place.partition: place.offset for place in partitions}

    def poll(self, timeout: float = -1) -> Message | None:
        if self._given is not None:
            self._rebalance(self._given)
            self._given = None
            return None
        for partition, offset in self._positions.items():
            if partition not in self._paused and offset < len(self._log.records.get(partition, ())):
                self._positions[partition] = offset + 1
                return self._log.message(partition, offset)
        time.sleep(min(timeout, _NOTHING_S))
        return None

    def commit(self, **asked: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for place in asked["offsets"]:
            self._log.committed[place.partition] = place.offset

    def close(self) -> None:
        self._positions.clear()

    def _rebalance(self, partitions: tuple[int, ...]) -> None:
        if self._positions:
            assert self._on_revoke is not None
            self._on_revoke(self, self.assignment())
        self._paused.clear()
        self._positions = {
            partition: self._log.committed.get(partition, 0) for partition in partitions
        }
        if self._on_assign is not None:
            self._on_assign(self, self.assignment())
