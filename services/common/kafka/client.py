"""The one producer, the one consumer and their security. Every service reaches Kafka through here.

Promise: `EventProducer.publish` returns only after the broker acknowledged the event with acks=all
(idempotent producer, murmur2 partitioning as in the Java and aiokafka clients). It never retries
beyond its time-out and never drops silently.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, cast

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from fulgurite.avro.codec import AvroImplementation, Codec
from fulgurite.errors import CodecError
from fulgurite.events import Event
from fulgurite.topics import MAX_MESSAGE_BYTES, Topic, topic_name

_log = logging.getLogger(__name__)

_WINDOW = 2
"""Requests under way from one event loop; meanwhile the next events gather. librdkafka sends five
at most to a partition of an idempotent producer, and while more is ready to go its thread does not
wait for an acknowledgement but asks without a pause: up to half of all that a gateway spent.
"""

_TICK_S = 0.002
"""How often an event loop that waits for many acknowledgements looks for them."""

_MANY = 8
"""Acknowledgements that an event loop waits for: from here on it looks for them itself."""

_GATHER_S = 0.004
"""While so many wait, events go to librdkafka no more often: a request costs its thread as much as
several events.
"""

_IDLE_S = 0.05
"""Longest wait of the thread that serves deliveries; bounds how long `close` takes."""

_ZSTD_LEVEL = 1
"""Half of the default level's work for a few percent more bytes."""

READ_TIMEOUT_S = 30.0
"""A broker that says nothing for so long is away."""

_LEADERLESS = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError._DESTROY_BROKER,  # pyright: ignore[reportPrivateUsage]
    }
)
"""Until another broker leads the partition, or the same one again."""

_METADATA_S = 2.0
_BATCH_S = 0.05


class LogUnavailable(Exception):
    """Kafka did not acknowledge an event in time, or refused it."""


class EventTooLarge(LogUnavailable):
    """An event is larger than a message may be: sending it again does not help."""


class Delivery(msgspec.Struct, frozen=True):
    """Where an acknowledged event lies."""

    partition: int
    offset: int


class Record(msgspec.Struct, frozen=True):
    """A record as read; `event` is None and `error` says why when its bytes could not be
    decoded.
    """

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes
    event: Event | None
    error: str | None


class KafkaSettings(BaseSettings):
    """Where Kafka is and how to get in. The conventional KAFKA_* names, because managed offerings
    hand them out.
    """

    model_config = SettingsConfigDict(
        populate_by_name=True, extra="ignore", use_attribute_docstrings=True
    )

    bootstrap_servers: str = Field(
        default="127.0.0.1:9092", validation_alias="KAFKA_BOOTSTRAP_SERVERS"
    )
    """Brokers as `host:port`, comma-separated."""
    security_protocol: str = Field(default="PLAINTEXT", validation_alias="KAFKA_SECURITY_PROTOCOL")
    """`PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`."""
    sasl_mechanism: str | None = Field(default=None, validation_alias="KAFKA_SASL_MECHANISM")
    """`PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`."""
    sasl_username: str | None = Field(default=None, validation_alias="KAFKA_SASL_USERNAME")
    """User name, with SASL."""
    sasl_password: SecretStr | None = Field(default=None, validation_alias="KAFKA_SASL_PASSWORD")
    """Password, with SASL. Never logged."""
    ssl_ca_location: str | None = Field(default=None, validation_alias="KAFKA_SSL_CA_LOCATION")
    """PEM file of the brokers' certificate authority; the system's if unset."""
    topic_prefix: str = Field(default="fulgurite.", validation_alias="FULGURITE_TOPIC_PREFIX")
    """Begins the name of every topic and consumer group, so that one cluster can carry several
    deployments."""
    replication: int = Field(default=1, ge=1, validation_alias="FULGURITE_REPLICATION")
    """Replicas of each topic when it is created; `min.insync.replicas` is their majority. Use 3
    for promises that outlive a broker."""
    avro: AvroImplementation = Field(default="compiled", validation_alias="FULGURITE_AVRO")
    """How events are encoded and decoded: `compiled`, or `fastavro`, the slower reference. Bytes
    and values are the same."""

    def topic(self, topic: Topic) -> str:
        """The topic's name on the broker."""
        return topic_name(topic, self.topic_prefix)

    def client_config(self) -> dict[str, Any]:
        """librdkafka's settings for address and security."""
        config: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": self.sasl_password.get_secret_value() if self.sasl_password else None,
            "ssl.ca.location": self.ssl_ca_location,
        }
        return {name: value for name, value in config.items() if value is not None}


class EventProducer:
    """Publishes events and tells when they are safe. Thread-safe; one per process. Start costs a
    thread.

    The thread serves deliveries, at once, until an event loop awaits many: that loop then serves
    them itself, a batch at a time. A thread that woke it for each would contend with it for the
    interpreter, and cost more than everything else done for an event. Events of one turn of the
    loop go to librdkafka together, and gather while `_WINDOW` requests are under way, or while many
    wait anyway: with few of them none waits.
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
        """`linger_ms`: for whoever queues much at the same time; at 0 the events of one burst leave
        one by one, a request each.

        With `burst_linger_ms` an event loop that awaits many has a second librdkafka with that
        linger, so that few are not held up for the sake of many. Events of one key keep their order
        where the earlier one is awaited before the later is published.
        """
        self._names: dict[str, str] = {}
        self._settings = settings
        self._codec = codec
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
        self._producer = Producer(
            {**config, "linger.ms": linger_ms, "error_cb": self._on_error}, logger=_log
        )
        self._producers = [self._producer]
        self._bursts = self._producer
        if burst_linger_ms:
            # Whether brokers are there is the first one's to say: this one may be idle, and lose
            # its connections over that.
            self._bursts = Producer(
                {**config, "linger.ms": burst_linger_ms, "error_cb": _tell}, logger=_log
            )
            self._producers.append(self._bursts)
        self._unreachable_since: float | None = None
        self._open = True
        self._loop: asyncio.AbstractEventLoop | None = None
        self._awaited = 0
        self._held: deque[_Outgoing] = deque()
        """Events that wait for their turn."""
        self._scheduled = False
        self._handed_over_at = float("-inf")
        self._under_way = 0
        """Requests, at most."""
        self._counting = threading.Lock()
        self._ticking = False
        self._thread_serves = False
        self._poller = threading.Thread(target=self._poll, name=f"kafka-{client_id}", daemon=True)
        self._poller.start()

    def submit(
        self, topic: Topic, key: str, event: Event, traceparent: str | None = None
    ) -> concurrent.futures.Future[Delivery]:
        """Queue an event; the future ends with its delivery or LogUnavailable. Raises InvalidEvent,
        LogUnavailable.
        """
        future: concurrent.futures.Future[Delivery] = concurrent.futures.Future()

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if not future.cancelled():
                self._settle(future, topic, error, message)

        self._produce(topic, key, event, traceparent, on_delivery)
        return future

    async def publish(
        self,
        topic: Topic,
        key: str,
        event: Event,
        traceparent: str | None = None,
        timeout_s: float | None = None,
    ) -> Delivery:
        """Return once the event is acknowledged. Raises InvalidEvent, LogUnavailable; after that
        the event may still arrive.

        A caller that gives up does not take the event out of the producer's queue.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Delivery] = loop.create_future()
        self._held.append(_Outgoing(topic, self._message(topic, key, event, traceparent), future))
        if not self._scheduled or self._loop is not loop:
            self._scheduled = True
            loop.call_soon(self._hand_over)
        self._awaited += 1
        if self._loop is not loop or (not self._ticking and self._must_tick()):
            self._loop, self._ticking = loop, True
            loop.call_later(_TICK_S, self._tick, loop)
        timer = (
            None
            if timeout_s is None
            else loop.call_later(
                timeout_s, _expire, future, f"{topic.name}: no acknowledgement within {timeout_s} s"
            )
        )
        try:
            return await future
        finally:
            self._awaited -= 1
            if timer is not None:
                timer.cancel()

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
        """Events that wait for an acknowledgement, and errors of the connection that were not
        looked at yet.
        """
        return sum(map(len, self._producers)) + len(self._held)

    def close(self, timeout_s: float = 10.0) -> int:
        """Flush and stop; returns how many events were left unacknowledged."""
        self._hand_over(everything=True)
        deadline = time.monotonic() + timeout_s
        left = sum(
            [producer.flush(max(0.0, deadline - time.monotonic())) for producer in self._producers]
        )
        self._open = False
        self._poller.join()
        return left

    def _produce(
        self,
        topic: Topic,
        key: str,
        event: Event,
        traceparent: str | None,
        on_delivery: _OnDelivery,
    ) -> None:
        self._send(
            self._producer, topic, self._message(topic, key, event, traceparent), on_delivery
        )

    def _message(self, topic: Topic, key: str, event: Event, traceparent: str | None) -> _Message:
        name = self._names.get(topic.name) or self._names.setdefault(
            topic.name, self._settings.topic(topic)
        )
        headers = cast("dict[str, str | bytes | None]", self._codec.headers(event, traceparent))
        return name, self._codec.encode(event), key.encode(), headers

    def _send(
        self, producer: Producer, topic: Topic, message: _Message, on_delivery: _OnDelivery
    ) -> None:
        name, value, key, headers = message
        try:
            producer.produce(name, value, key, on_delivery=on_delivery, headers=headers)
        except BufferError as error:
            raise LogUnavailable(
                f"{topic.name}: the producer's queue is full, Kafka does not keep up"
            ) from error
        except KafkaException as error:
            raise _refusal(topic, cast(KafkaError, error.args[0])) from error

    def _hand_over(self, *, everything: bool = False) -> None:
        """Give librdkafka what is held, unless enough is under way: as one burst, of which at most
        two requests become.
        """
        now = time.monotonic()
        if self._awaited >= _MANY and now - self._handed_over_at < _GATHER_S and not everything:
            return  # the loop looks for acknowledgements, and comes back to it then
        self._scheduled = False
        if not self._held or (self._under_way >= _WINDOW and not everything):
            return
        self._handed_over_at = now
        held, self._held = self._held, deque()
        burst, producer = (
            _Burst(len(held)),
            self._bursts if self._awaited >= _MANY else self._producer,
        )
        with self._counting:
            self._under_way += burst.requests
        for outgoing in held:
            try:
                self._send(
                    producer,
                    outgoing.topic,
                    outgoing.message,
                    partial(self._delivered, burst, outgoing),
                )
            except LogUnavailable as error:
                self._count(burst)
                if not outgoing.future.done():
                    outgoing.future.set_exception(error)

    def _delivered(
        self, burst: _Burst, outgoing: _Outgoing, error: KafkaError | None, message: Message
    ) -> None:
        """In the loop's thread or in that of the poller."""
        self._count(burst)
        if threading.get_ident() == outgoing.thread:
            self._settle_outgoing(outgoing, error, message)
        else:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                outgoing.future.get_loop().call_soon_threadsafe(
                    self._settle_outgoing, outgoing, error, message
                )

    def _count(self, burst: _Burst) -> None:
        with self._counting:
            burst.left -= 1
            if not burst.left:
                self._under_way -= burst.requests

    def _settle_outgoing(
        self, outgoing: _Outgoing, error: KafkaError | None, message: Message
    ) -> None:
        if not outgoing.future.done():
            self._settle(outgoing.future, outgoing.topic, error, message)
        if self._held and not self._ticking:
            self._hand_over()

    def _settle(
        self,
        future: concurrent.futures.Future[Delivery] | asyncio.Future[Delivery],
        topic: Topic,
        error: KafkaError | None,
        message: Message,
    ) -> None:
        if error is None:
            self._unreachable_since = None
            future.set_result(Delivery(cast(int, message.partition()), cast(int, message.offset())))
        else:
            future.set_exception(_refusal(topic, error))

    def _must_tick(self) -> bool:
        if self._awaited >= _MANY:
            return True
        # The thread waits for deliveries of the first.
        apart = any(len(producer) for producer in self._producers[1:])
        return apart or (not self._thread_serves and bool(self._awaited or self._held))

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve what was delivered, in the thread of the loop that waits for it; again soon, while
        it waits for much more.
        """
        for producer in self._producers:
            producer.poll(0)
        if self._held:
            self._hand_over()
        if self._loop is loop:
            self._ticking = self._must_tick()
            if self._ticking:
                loop.call_later(_TICK_S, self._tick, loop)

    def _poll(self) -> None:
        """Serve deliveries and errors; only a few times a second while a loop does."""
        while self._open:
            # In this order: a loop that sees the thread serve may rely on it.
            self._thread_serves = False
            if self._awaited >= _MANY:
                time.sleep(_IDLE_S)
            else:
                self._thread_serves = True
                self._producer.poll(_IDLE_S)
            for producer in self._producers:
                producer.poll(0)

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self._unreachable_since is None:  # pyright: ignore[reportPrivateUsage]
            self._unreachable_since = time.monotonic()
        _tell(error)


class _Burst:
    """Events that were handed over together."""

    __slots__ = ("left", "requests")

    def __init__(self, size: int) -> None:
        self.left = size
        self.requests = min(2, size)
        """librdkafka may be awake already, and send the first of them alone."""


class _Outgoing:
    """An event on its way, and who waits for it."""

    __slots__ = ("future", "message", "thread", "topic")

    def __init__(self, topic: Topic, message: _Message, future: asyncio.Future[Delivery]) -> None:
        self.topic = topic
        self.message = message
        self.future = future
        self.thread = threading.get_ident()


_OnDelivery = Callable[[KafkaError | None, Message], None]
_Message = tuple[str, bytes, bytes, dict[str, str | bytes | None]]
"""Topic's name, value, key, headers."""


def _refusal(topic: Topic, error: KafkaError) -> LogUnavailable:
    kind = EventTooLarge if error.code() == KafkaError.MSG_SIZE_TOO_LARGE else LogUnavailable
    return kind(f"{topic.name}: {error.str()}")


def _tell(error: KafkaError) -> None:
    _log.warning("kafka: %s", error.str())


def _expire(future: asyncio.Future[Delivery], why: str) -> None:
    if not future.done():
        future.set_exception(LogUnavailable(why))


def make_consumer(
    settings: KafkaSettings, group_id: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Consumer:
    """A consumer that starts at the beginning, commits nothing by itself and fails on an offset out
    of range if told so.
    """
    return Consumer(
        {
            **settings.client_config(),
            "group.id": group_id or "fulgurite-reader",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": MAX_MESSAGE_BYTES,
            "fetch.wait.max.ms": 100,
            **(overrides or {}),
        },
        logger=_log,
    )


def watermarks(
    consumer: Consumer, place: TopicPartition, timeout_s: float = READ_TIMEOUT_S
) -> tuple[int, int]:
    """First offset and end of a partition. Raises KafkaException.

    A broker that has just started has no leaders yet, and while one dies the partitions that it led
    are unknown: that is waited for. A topic that a broker says it does not have is not.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return consumer.get_watermark_offsets(place, timeout=timeout_s)
        except KafkaException as error:
            if time.monotonic() > deadline or not _passes(
                consumer, place, cast(KafkaError, error.args[0]).code()
            ):
                raise
            time.sleep(0.2)


def _passes(consumer: Consumer, place: TopicPartition, code: int) -> bool:
    """Whether what went wrong passes by itself."""
    if code != KafkaError._UNKNOWN_PARTITION:  # pyright: ignore[reportPrivateUsage]
        return code in _LEADERLESS
    try:
        known = consumer.list_topics(place.topic, timeout=_METADATA_S).topics.get(place.topic)
    except KafkaException:
        return True
    return known is not None and (
        known.error is None or known.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART
    )


def read_until(
    consumer: Consumer, ends: Mapping[tuple[str, int], int], batch: int = 500
) -> Iterator[Message]:
    """What the assigned partitions hold below these ends, which are by topic and partition.

    Raises LogUnavailable if the broker falls silent.
    """
    left = dict(ends)
    heard = time.monotonic()
    while left:
        # One, and what has come with it: `consume` waits for the whole of a batch or its time-out,
        # at every end too.
        messages = consumer.consume(1, timeout=_BATCH_S)
        if messages:
            messages += consumer.consume(batch, timeout=0)
            heard = time.monotonic()
        elif time.monotonic() - heard > READ_TIMEOUT_S:
            raise LogUnavailable(
                f"nothing to read for {READ_TIMEOUT_S:.0f} s, though the ends {left} are not "
                f"reached"
            )
        for message in messages:
            failure = message.error()
            if failure is not None:
                raise LogUnavailable(f"{message.topic()}: {failure.str()}")
            place, offset = (
                (cast(str, message.topic()), cast(int, message.partition())),
                cast(int, message.offset()),
            )
            end = left.get(place, 0)
            if offset < end:
                yield message
            if offset + 1 >= end and end:
                del left[place]


def read_message(message: Message, codec: Codec) -> Record:
    """A message that bears no error → a record. Never raises: undecodable bytes are told in
    `error`.
    """
    value = message.value() or b""
    event: Event | None = None
    problem: str | None = None
    try:
        event = codec.decode(value)
    except CodecError as error:
        problem = f"{type(error).__name__}: {error}"
    return Record(
        partition=cast(int, message.partition()),
        offset=cast(int, message.offset()),
        timestamp=message.timestamp()[1],
        key=message.key(),
        value=value,
        event=event,
        error=problem,
    )


def read_all(
    settings: KafkaSettings,
    topic: Topic,
    codec: Codec,
    *,
    partitions: list[int] | None = None,
    since_ms: int | None = None,
    keys: Collection[bytes] | None = None,
) -> Iterator[Record]:
    """What a topic holds now, partition by partition in offset order; from `since_ms` (record time)
    on if given; of these keys only.

    Bounded by the end offsets at the time of the call. Raises LogUnavailable when the broker falls
    silent.
    """
    name = settings.topic(topic)
    consumer = make_consumer(settings)
    try:
        chosen = range(topic.partitions) if partitions is None else partitions
        starts: list[TopicPartition] = []
        ends: dict[tuple[str, int], int] = {}
        for partition in chosen:
            low, high = watermarks(consumer, TopicPartition(name, partition))
            if high > low:
                ends[name, partition] = high
                starts.append(
                    TopicPartition(name, partition, low if since_ms is None else since_ms)
                )
        if since_ms is not None and starts:
            found = consumer.offsets_for_times(starts, timeout=READ_TIMEOUT_S)
            starts = [tp for tp in found if 0 <= tp.offset < ends[name, tp.partition]]
            ends = {(name, tp.partition): ends[name, tp.partition] for tp in starts}
        consumer.assign(starts)
        for message in read_until(consumer, ends):
            if keys is None or message.key() in keys:
                yield read_message(message, codec)
    except KafkaException as error:
        raise LogUnavailable(f"{name}: {error}") from error
    finally:
        consumer.close()
