"""Reads several topics from their ends in a thread, and hands the events to the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

from confluent_kafka import KafkaException, TopicPartition

from fulgurite.avro.codec import Codec
from fulgurite.events import Event
from fulgurite.topics import Topic
from services.common.kafka.consumer import make_consumer, read_message, watermarks
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs

_TIMEOUT_S = 15.0

logger = logs.get()


class Feed:
    """Calls `on_event` in the event loop for every event written after it was opened.

    Use it as an async context manager.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        codec: Codec,
        topics: Sequence[Topic],
        on_event: Callable[[Event], None],
    ) -> None:
        self._settings = settings
        self._codec = codec
        self._topics = topics
        self._on_event = on_event
        self._open = True

    async def __aenter__(self) -> Feed:
        """Begin at the topics' ends. Raises LogUnavailable."""
        self._loop = asyncio.get_running_loop()
        self._consumer = make_consumer(self._settings)
        try:
            self._consumer.assign(await asyncio.to_thread(self._ends))
        except KafkaException as error:
            self._consumer.close()
            raise LogUnavailable(
                f"cannot read from Kafka at {self._settings.bootstrap_servers} "
                f"(KAFKA_BOOTSTRAP_SERVERS): {error}. Is it running?"
            ) from error
        self._thread = threading.Thread(target=self._read, name="feed", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open = False
        await asyncio.to_thread(self._thread.join)
        self._consumer.close()

    def _ends(self) -> list[TopicPartition]:
        ends: list[TopicPartition] = []
        for topic in self._topics:
            for partition in range(topic.partitions):
                place = TopicPartition(self._settings.topic(topic), partition)
                _, high = watermarks(self._consumer, place, _TIMEOUT_S)
                ends.append(TopicPartition(place.topic, partition, high))
        return ends

    def _read(self) -> None:
        while self._open:
            for message in self._consumer.consume(200, timeout=0.05):
                failure = message.error()
                if failure is not None:
                    logger.warning("cannot read from Kafka; trying again", error=failure.str())
                    continue
                record = read_message(message, self._codec)
                if record.event is not None:
                    self._loop.call_soon_threadsafe(self._on_event, record.event)
