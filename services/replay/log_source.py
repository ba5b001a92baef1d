"""Reads records from Kafka up to the end offsets at the start, with `assign()` and no commits.

End offsets are read downstream first: of all that a processor had written by then, the inputs are
below the other ends. So a replay may run beside live traffic, and sees a consistent state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import cast

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from fulgurite.avro.codec import Codec
from fulgurite.events import LlmCall
from fulgurite.topics import (
    AGENT_REWARDS,
    AGENT_STATUS,
    DEAD_LETTERS,
    EPISODES,
    LLM_CALLS,
    TRAINING_LEDGER,
    TRAJECTORIES,
    Topic,
)
from services.common.kafka.consumer import READ_TIMEOUT_S, make_consumer, read_until, watermarks
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.logged_calls import CallReader
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.replay.records import Raw

DOWNSTREAM_FIRST = (
    TRAINING_LEDGER,
    TRAJECTORIES,
    DEAD_LETTERS,
    EPISODES,
    AGENT_REWARDS,
    AGENT_STATUS,
    LLM_CALLS,
)

_BATCH = 2_000
_READER = {"queued.max.messages.kbytes": 65_536, "fetch.wait.max.ms": 10}

Place = tuple[str, int]
"""Topic, without the prefix, and partition."""


class LogSource:
    """Reads the topics of one deployment. Raises LogUnavailable."""

    def __init__(
        self,
        settings: KafkaSettings,
        codec: Codec,
        topics: Collection[Topic] = DOWNSTREAM_FIRST,
        after: Mapping[Place, int] | None = None,
        named: Collection[Topic] = (TRAJECTORIES,),
    ) -> None:
        """`after`: offsets to start from instead of the beginning.

        `named`: topics whose headers are read, which takes time.
        """
        self._named = {topic.name for topic in named}
        self._settings = answering(settings)
        self._calls = CallReader(settings, codec)
        self._spare: Consumer | None = None
        self._names = {settings.topic(topic): topic for topic in topics}
        self._starts: dict[Place, int] = {}
        self.gaps: list[str] = []
        """Ranges of offsets that retention has removed."""
        self._ends: dict[Place, int] = {}
        consumer = make_consumer(settings)
        try:
            for topic in topics:
                for partition in range(topic.partitions):
                    low, high = watermarks(
                        consumer, TopicPartition(settings.topic(topic), partition)
                    )
                    place = (topic.name, partition)
                    wanted = (after or {}).get(place, low)
                    if wanted < low:
                        self.gaps.append(
                            f"{topic.name}[{partition}]: retention removed offsets {wanted} to "
                            f"{low - 1}"
                        )
                    self._starts[place] = max(low, wanted)
                    self._ends[place] = high
        except KafkaException as error:
            raise LogUnavailable(
                f"the topics cannot be read at {settings.bootstrap_servers}: {error}"
            ) from error
        finally:
            consumer.close()

    def end(self, place: Place) -> int:
        """The offset after the last record that is read."""
        return max(self._ends[place], self._starts[place])

    def count(self, topics: Collection[Topic], since_ms: int | None = None) -> int:
        """See `Source`."""
        places = [
            (topic.name, partition) for topic in topics for partition in range(topic.partitions)
        ]
        starts = (
            self._starts if since_ms is None else self._starts | self._since(topics, None, since_ms)
        )
        return sum(max(0, self._ends[place] - starts[place]) for place in places)

    def read(
        self, topics: Collection[Topic], partition: int, since_ms: int | None = None
    ) -> Iterator[Raw]:
        """See `Source`."""
        starts = (
            self._starts
            if since_ms is None
            else self._starts | self._since(topics, partition, since_ms)
        )
        places = [(topic.name, partition) for topic in topics if partition < topic.partitions]
        places = [place for place in places if self._ends[place] > starts[place]]
        # Creating a consumer costs more than reading a small partition, so it is used again. A
        # reader that is not finished keeps its own.
        consumer, self._spare = (
            self._spare or make_consumer(self._settings, overrides=_READER),
            None,
        )
        try:
            names = {topic.name: self._settings.topic(topic) for topic in topics}
            consumer.assign(
                [
                    TopicPartition(names[name], number, starts[name, number])
                    for name, number in places
                ]
            )
            for message in read_until(
                consumer,
                {(names[name], number): self._ends[name, number] for name, number in places},
                _BATCH,
            ):
                name = self._names[cast(str, message.topic())].name
                yield _raw(message, name, _headers(message) if name in self._named else {})
            consumer.unassign()
        except BaseException as error:
            consumer.close()
            if isinstance(error, KafkaException):
                raise LogUnavailable(f"partition {partition} cannot be read: {error}") from error
            raise
        self._spare = consumer

    def complete_call(self, call: LlmCall, held: dict[str, LlmCall]) -> LlmCall:
        """See `Source`. A parent that is not in `held` is read from its place in the log."""
        return self._calls.complete_call(call, held.get)

    def _since(
        self, topics: Collection[Topic], partition: int | None, since_ms: int
    ) -> dict[Place, int]:
        chosen = [(t, n) for t in topics for n in range(t.partitions) if partition in (None, n)]
        asked = [
            TopicPartition(self._settings.topic(topic), number, since_ms)
            for topic, number in chosen
        ]
        consumer = make_consumer(self._settings)
        try:
            found = consumer.offsets_for_times(asked, timeout=READ_TIMEOUT_S)
        except KafkaException as error:
            raise LogUnavailable(f"the log cannot be searched by time: {error}") from error
        finally:
            consumer.close()
        starts: dict[Place, int] = {}
        for at in found:
            place = (self._names[at.topic].name, at.partition)
            starts[place] = (
                max(at.offset, self._starts[place]) if at.offset >= 0 else self._ends[place]
            )
        return starts


def _headers(message: Message) -> dict[str, bytes]:
    return {name: value for name, value in message.headers() or () if isinstance(value, bytes)}


def _raw(message: Message, topic: str, headers: Mapping[str, bytes]) -> Raw:
    return Raw(
        topic=topic,
        partition=cast(int, message.partition()),
        offset=cast(int, message.offset()),
        timestamp=message.timestamp()[1],
        key=message.key() or b"",
        value=message.value() or b"",
        event_id=headers["event-id"].decode() if "event-id" in headers else "",
        event_type=headers["event-type"].decode() if "event-type" in headers else "",
    )
