"""Follows the first partition of a few topics from their beginning: a thread blocks on the broker,
so nothing polls and nothing waits; each event is told in the event loop. The broker being away only
makes what is known older: it is tried again, from the beginning, so what takes the events must be a
fold that ends where it was.
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
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs

log = logs.get(__name__)

_STOP_CHECK_S = 0.2
"""Only how soon the thread notices that it should stop; a record wakes it at once."""
_RETRY_S = 1.0
_TIMEOUT_S = 10.0


class Follower:
    """`take` gets every event (None: bytes that no event is read from) in log order, topic by
    topic, in the loop that called `start`.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        codec: Codec,
        topics: Sequence[Topic],
        take: Callable[[Event | None], None],
    ) -> None:
        self.caught_up = asyncio.Event()
        """Set once everything that was in the log at the start has been taken, so that nobody acts
        on half a history.
        """
        self._kafka = kafka
        self._codec = codec
        self._names = [kafka.topic(topic) for topic in topics]
        self._take = take
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Begin to read, within the event loop that will take the events."""
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
            try:
                self._follow(consumer)
            except KafkaException as error:
                log.warning(
                    "the log cannot be followed; trying again", topics=self._names, error=str(error)
                )
                self._stop.wait(_RETRY_S)
            finally:
                consumer.close()

    def _follow(self, consumer: Consumer) -> None:
        ends = self._ends(consumer)
        consumer.assign([TopicPartition(name, 0, 0) for name in self._names])
        while not self._stop.is_set():
            if not ends and not self.caught_up.is_set():
                self._tell(self.caught_up.set)
            for message in consumer.consume(200, timeout=_STOP_CHECK_S):
                failure = message.error()
                if failure is not None:
                    raise KafkaException(failure)
                self._tell(self._take_safely, read_message(message, self._codec).event)
                name, offset = str(message.topic()), message.offset() or 0
                if offset + 1 >= ends.get(name, offset + 2):
                    del ends[name]

    def _take_safely(self, event: Event | None) -> None:
        try:
            self._take(event)
        except Exception as error:
            log.error(
                "an event is passed over",
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

    def _tell(self, callback: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            if self._loop is not None:
                self._loop.call_soon_threadsafe(callback, *args)
