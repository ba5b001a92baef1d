"""Follows the first partition of a few topics from their beginning.

A thread blocks on the broker, and each event is applied in the event loop. When the broker cannot
be reached, the thread tries again and reads from the beginning. So `apply` must be a fold that
reaches the same state when it sees the same events again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition

from fulgurite.avro.codec import Codec
from fulgurite.events import Event
from fulgurite.topics import Topic
from services.common.kafka.consumer import make_consumer, read_message, watermarks
from services.common.kafka.dead_letters import words_of
from services.common.kafka.lag import watch_lag
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs, metrics

logger = logs.get(__name__)

_STOP_CHECK_S = 0.2
"""How soon the thread notices that it should stop; a record wakes it at once."""
_RETRY_S = 1.0
_TIMEOUT_S = 10.0


class TopicTail:
    """Calls `apply` with every event in log order, topic by topic, in the loop that called `start`.

    `apply` gets None for bytes that cannot be decoded.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        codec: Codec,
        topics: Sequence[Topic],
        apply: Callable[[Event | None], None],
    ) -> None:
        self.caught_up = asyncio.Event()
        """Set once everything that was in the log at the start is applied."""
        self._kafka = kafka
        self._codec = codec
        self._names = [kafka.topic(topic) for topic in topics]
        self._apply = apply
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="topic-tail", daemon=True)

    def start(self) -> None:
        """Begin to read. Call it in the event loop in which `apply` shall run."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.is_set():
            consumer = make_consumer(self._kafka)
            watch_lag(consumer, self._kafka)
            try:
                self._follow(consumer)
            except KafkaException as error:
                logger.warning(
                    "the topics cannot be followed; trying again",
                    topics=self._names,
                    retry_s=_RETRY_S,
                    error=str(error),
                )
                self._stop.wait(_RETRY_S)
            finally:
                consumer.close()

    def _follow(self, consumer: Consumer) -> None:
        ends = self._ends(consumer)
        consumer.assign([TopicPartition(name, 0, 0) for name in self._names])
        while not self._stop.is_set():
            if not ends and not self.caught_up.is_set():
                self._call_in_loop(self.caught_up.set)
            for message in consumer.consume(200, timeout=_STOP_CHECK_S):
                failure = message.error()
                if failure is not None:
                    raise KafkaException(failure)
                self._call_in_loop(self._apply_safely, read_message(message, self._codec).event)
                name, offset = str(message.topic()), message.offset() or 0
                metrics.count(
                    "fulgurite_consumed_records_total", name.removeprefix(self._kafka.topic_prefix)
                )
                if offset + 1 >= ends.get(name, offset + 2):
                    del ends[name]

    def _apply_safely(self, event: Event | None) -> None:
        try:
            self._apply(event)
        except Exception as error:
            logger.error(
                "an event cannot be applied and is skipped",
                event_id=event.event_id if event else None,
                error=words_of(error),
                exc_info=error,
            )

    def _ends(self, consumer: Consumer) -> dict[str, int]:
        ends: dict[str, int] = {}
        for name in self._names:
            low, high = watermarks(consumer, TopicPartition(name, 0), _TIMEOUT_S)
            if high > low:
                ends[name] = high
        return ends

    def _call_in_loop(self, callback: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if self._loop is not None:
                self._loop.call_soon_threadsafe(callback, *args)
