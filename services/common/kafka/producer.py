"""The one producer. Every service writes to Kafka through it.

Promise: `EventProducer.publish` returns only after the broker acknowledged the event with acks=all.
The producer is idempotent and partitions with murmur2, as the Java and aiokafka clients do. It
never retries beyond its time-out, and it never drops an event silently.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from typing import Any, cast

from confluent_kafka import KafkaError, Message, Producer

from fulgurite.avro.codec import Codec
from fulgurite.events import Event
from fulgurite.topics import DEAD_LETTERS, MAX_MESSAGE_BYTES, Topic
from services.common.kafka.burst_scheduler import BurstScheduler
from services.common.kafka.delivery import Delivery, EncodedEvent, refusal_of, send
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import metrics

logger = logging.getLogger(__name__)

_PUBLISHED = "fulgurite_published_events_total"
_ZSTD_LEVEL = 1
"""Half of the default level's work for a few percent more bytes."""


class EventProducer:
    """Publishes events and reports when each is acknowledged. Thread-safe; one per process.

    Each instance starts one thread. What an event loop publishes goes through a `BurstScheduler`.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        codec: Codec,
        client_id: str,
        *,
        delivery_timeout_s: float = 120.0,
        linger_ms: float = 0,
        burst_linger_ms: float = 0,
    ) -> None:
        """`linger_ms`: producer linger. With 0, each event of a burst may take its own request.

        `burst_linger_ms`: linger of a second librdkafka producer for event loops that await many
        events, so that a few events alone do not linger. Events of one key keep their order only if
        the earlier one is awaited before the later one is published.
        """
        metrics.start_counter(_PUBLISHED, DEAD_LETTERS.name)
        self._names: dict[str, str] = {}
        self._settings = settings
        self._codec = codec
        self._unreachable_since: float | None = None
        config: dict[str, Any] = {
            **settings.client_config(),
            "client.id": client_id,
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2_random",
            "compression.type": "zstd",
            "compression.level": _ZSTD_LEVEL,
            "socket.nagle.disable": True,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "delivery.timeout.ms": int(delivery_timeout_s * 1000),
            "reconnect.backoff.max.ms": 1000,
        }
        self._kafka = Producer(
            {**config, "linger.ms": linger_ms, "error_cb": self._on_error}, logger=logger
        )
        for_bursts = self._kafka
        if burst_linger_ms:
            # Only the first producer tells whether brokers are reachable: this one may be idle, and
            # brokers close idle connections.
            for_bursts = Producer(
                {**config, "linger.ms": burst_linger_ms, "error_cb": _warn}, logger=logger
            )
        self._scheduler = BurstScheduler(self._kafka, for_bursts, self._resolve, client_id)

    def submit(
        self, topic: Topic, key: str, event: Event, traceparent: str | None = None
    ) -> concurrent.futures.Future[Delivery]:
        """Queue an event. The future ends with its delivery or LogUnavailable.

        Raises InvalidEvent, LogUnavailable.
        """
        future: concurrent.futures.Future[Delivery] = concurrent.futures.Future()

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if not future.cancelled():
                self._resolve(future, topic, error, message)

        send(self._kafka, topic, self._encode(topic, key, event, traceparent), on_delivery)
        return future

    async def publish(
        self,
        topic: Topic,
        key: str,
        event: Event,
        traceparent: str | None = None,
        timeout_s: float | None = None,
    ) -> Delivery:
        """Return once the event is acknowledged. Raises InvalidEvent, LogUnavailable.

        After LogUnavailable or a cancellation the event is still queued, and may arrive.
        """
        encoded = self._encode(topic, key, event, traceparent)
        return await self._scheduler.publish(topic, encoded, timeout_s)

    def publish_sync(
        self, topic: Topic, key: str, event: Event, timeout_s: float = 30.0
    ) -> Delivery:
        """`publish` for code without an event loop."""
        future = self.submit(topic, key, event)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            raise LogUnavailable(f"{topic.name}: no acknowledgement within {timeout_s} s") from None

    @property
    def unreachable_for_s(self) -> float:
        """Seconds since every broker became unreachable; 0 while at least one answers."""
        since = self._unreachable_since
        return 0.0 if since is None else time.monotonic() - since

    def pending(self) -> int:
        """Return how many events wait for an acknowledgement.

        Connection errors count too, until the producer's thread has looked at them.
        """
        return self._scheduler.pending()

    def close(self, timeout_s: float = 10.0) -> int:
        """Flush and stop. Return how many events were left unacknowledged."""
        return self._scheduler.close(timeout_s)

    def _encode(
        self, topic: Topic, key: str, event: Event, traceparent: str | None
    ) -> EncodedEvent:
        name = self._names.get(topic.name) or self._names.setdefault(
            topic.name, self._settings.topic(topic)
        )
        headers = cast("dict[str, str | bytes | None]", self._codec.headers(event, traceparent))
        return name, self._codec.encode(event), key.encode(), headers

    def _resolve(
        self,
        future: concurrent.futures.Future[Delivery] | asyncio.Future[Delivery],
        topic: Topic,
        error: KafkaError | None,
        message: Message,
    ) -> None:
        if error is None:
            self._unreachable_since = None
            metrics.count(_PUBLISHED, topic.name)
            future.set_result(Delivery(cast(int, message.partition()), cast(int, message.offset())))
        else:
            future.set_exception(refusal_of(topic, error))

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self._unreachable_since is None:  # pyright: ignore[reportPrivateUsage]
            self._unreachable_since = time.monotonic()
        _warn(error)


def _warn(error: KafkaError) -> None:
    logger.warning("kafka: %s", error.str())
