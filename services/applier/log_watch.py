"""Follows `policy.updates` and `policy.routes` from their beginning, in a thread that blocks on the broker: no polling delay.

Each policy has a fold of its own, touched in the event loop only; its `changed` is set when it may have a new answer, `caught_up` once
everything that was in the log at the start has been read, so that nobody acts on half a history.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Collection

from confluent_kafka import Consumer, KafkaException, TopicPartition

from fulgurite.codec import Codec
from fulgurite.desired import DesiredVersion
from fulgurite.events import Event
from fulgurite.topics import POLICY_ROUTES, POLICY_UPDATES
from services import logs
from services.kafka import KafkaSettings, make_consumer, read_message

log = logs.get(__name__)

_TOPICS = (POLICY_UPDATES, POLICY_ROUTES)
_STOP_CHECK_S = 0.2
"""Only how soon the thread notices that it should stop; a record wakes it at once."""
_RETRY_S = 1.0


class Followed:
    """One policy's fold."""

    def __init__(self, policy: str) -> None:
        self.desired = DesiredVersion(policy)
        self.changed = asyncio.Event()


class LogWatch:
    """Start it within a running event loop."""

    def __init__(self, kafka: KafkaSettings, codec: Codec, policies: Collection[str]) -> None:
        self.policies = {policy: Followed(policy) for policy in policies}
        self.caught_up = asyncio.Event()
        self._kafka = kafka
        self._codec = codec
        self._stop = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="log-watch", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        # The broker may be away when we start.
        while not self._stop.is_set():
            consumer = make_consumer(self._kafka)
            try:
                self._follow(consumer)
            except KafkaException as error:
                log.warning("the log cannot be read; trying again", error=str(error))
                self._stop.wait(_RETRY_S)
            finally:
                consumer.close()

    def _follow(self, consumer: Consumer) -> None:
        ends: dict[str, int] = {}
        for topic in _TOPICS:
            name = self._kafka.topic(topic)
            low, high = consumer.get_watermark_offsets(TopicPartition(name, 0), timeout=10)
            if high > low:
                ends[name] = high
        # Reading again from the beginning after a failure is harmless: the fold takes each update once.
        consumer.assign([TopicPartition(self._kafka.topic(topic), 0, 0) for topic in _TOPICS])
        if not ends:
            self._tell(self.caught_up.set)
        while not self._stop.is_set():
            for message in consumer.consume(200, timeout=_STOP_CHECK_S):
                failure = message.error()
                if failure is not None:
                    raise KafkaException(failure)
                self._tell(self._take, read_message(message, self._codec).event)
                name, offset = str(message.topic()), message.offset() or 0
                if name in ends and offset + 1 >= ends[name]:
                    del ends[name]
                    if not ends:
                        self._tell(self.caught_up.set)

    def _take(self, event: Event | None) -> None:
        for followed in self.policies.values():
            if followed.desired.take(event):
                followed.changed.set()

    def _tell(self, callback: object, *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(callback, *args)  # pyright: ignore[reportArgumentType]
