"""The one stream worker: Faust reads co-partitioned topics, a `Processor` of ours makes of them
what it will.

Promise: at least once. An input is acknowledged strictly in offset order, once it and everything
before it in its partition is done. The same worker owns the same partition of every topic. State
is a plain cache: it is dropped when partitions are revoked and restored when they are assigned. An
input that cannot be read, that the processor rejects, or whose handling raises twice
(`services.common.streaming.poison`), goes to `dead.letters` and the stream goes on; a failure of
the log, a disk or the network, a send that is not acknowledged among them, stops the worker with
nothing acknowledged that was not done.

No Faust tables, no Faust producer, no Faust web server; concurrency 1.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol, cast

from confluent_kafka import Consumer, Message, TopicPartition
from faust.types import TP
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from fulgurite.avro.codec import Codec
from fulgurite.errors import CodecError
from fulgurite.events import Event
from fulgurite.topics import DEAD_LETTERS, Topic
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import Record, make_consumer, watermarks
from services.common.kafka.dead_letters import actions_in, addressed, unusable, words_of
from services.common.kafka.lag import LAG
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import liveness, logs, metrics
from services.common.runtime.clock import now_ms
from services.common.streaming.faust_app import make_app
from services.common.streaming.faust_overrides import BatchConsumer, events_of, install
from services.common.streaming.poison import failure_of

logger = logs.get()

_OFFSET_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_LONGEST_SESSION_S = 90.0
"""Faust's time-out of a request: it does not start with longer sessions."""
_REST_S = 0.005
_UNCOLLECTED = 50_000
"""Objects in cycles, such as those of failed tasks, before they are collected: some megabytes."""
_QUIET = ("faust", "mode", "aiokafka")


class StreamSettings(BaseSettings):
    """What every stream worker has; each names its own environment prefix."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_STREAM_", extra="ignore", use_attribute_docstrings=True
    )

    instance: str = Field(default="0")
    """Name of this worker within its group, stable over restarts (static membership)."""
    session_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds after which the partitions of a dead worker move to others. At most 90."""
    commit_interval_s: float = Field(default=1.0, gt=0)
    """Seconds between two commits of acknowledged offsets."""
    tick_s: float = Field(default=0.5, gt=0)
    """Seconds between two looks at deadlines."""
    history_s: float = Field(default=600.0, ge=0)
    """Seconds of output, from before the first input that is not acknowledged, that a start
    reads."""

    @field_validator("session_timeout_s")
    @classmethod
    def _not_beyond_faust_s(cls, value: float) -> float:
        if value > _LONGEST_SESSION_S:
            name = f"{cls.model_config.get('env_prefix', '')}SESSION_TIMEOUT_S"
            raise ValueError(
                f"{name} is {value:g} s, and workers take at most {_LONGEST_SESSION_S:g} s; "
                "set it lower"
            )
        return value


class Rejected(Exception):
    """An input that the processor cannot use; it goes to `dead.letters`, and `actions` are lost
    with it.
    """

    def __init__(self, message: str, actions: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.actions = actions


class Ack:
    """The acknowledgement of one input: call it once nothing depends on the input any more."""

    __slots__ = ("_order", "acknowledge", "done", "logged_at")

    def __init__(
        self, order: AckOrder, acknowledge: Callable[[], object], logged_at: int | None = None
    ) -> None:
        self._order = order
        self.acknowledge = acknowledge
        self.logged_at = logged_at
        """Record time, Unix milliseconds, if it is known."""
        self.done = False

    def __call__(self) -> None:
        self.done = True
        self._order.advance()


class AckOrder:
    """Acknowledges the inputs of one partition strictly in order."""

    def __init__(self) -> None:
        self._waiting: deque[Ack] = deque()

    def add(self, acknowledge: Callable[[], object], logged_at: int | None = None) -> Ack:
        """The next input, in offset order."""
        ack = Ack(self, acknowledge, logged_at)
        self._waiting.append(ack)
        return ack

    def advance(self) -> None:
        """Acknowledge from the front as far as every input is done."""
        while self._waiting and self._waiting[0].done:
            self._waiting.popleft().acknowledge()

    def __len__(self) -> int:
        return len(self._waiting)


class Log:
    """What a processor may ask of Kafka: offsets, and acknowledged sends."""

    def __init__(
        self, settings: KafkaSettings, codec: Codec, producer: EventProducer, group_id: str
    ) -> None:
        self.settings = settings
        self.codec = codec
        self._producer = producer
        self._consumer = make_consumer(settings, group_id)
        self._asking = asyncio.Lock()

    async def publish(self, topic: Topic, events: Iterable[tuple[str, Event]]) -> None:
        """Send events by (key, event), in order; return when all are acknowledged. Raises
        LogUnavailable.
        """
        # Not by futures of another thread: it would wake this one for each delivery.
        await asyncio.gather(*(self._producer.publish(topic, key, event) for key, event in events))

    async def end_offset(self, topic: Topic, partition: int) -> int:
        """One past the last record there is now."""
        return (await self._ask(self._watermarks, topic, partition))[1]

    async def starts(self, topic: Topic, partitions: Iterable[int]) -> dict[int, int]:
        """Where the group will go on reading: its committed offsets, or the beginning."""
        return await self._ask(self._starts, topic, list(partitions))

    async def timestamp_at(self, topic: Topic, partition: int, offset: int) -> int | None:
        """Record time at an offset, Unix milliseconds; None at the end."""
        first: Message | None = await self._ask(self._first, topic, partition, offset)
        return None if first is None else first.timestamp()[1]

    async def first_offset(self, topic: Topic, partition: int, offset: int) -> int | None:
        """Of the first record that lies there or beyond; None at the end."""
        first: Message | None = await self._ask(self._first, topic, partition, offset)
        return None if first is None else first.offset()

    def close(self) -> None:
        """Close the consumer; the producer is its owner's."""
        self._consumer.close()

    async def _ask(self, question: Callable[..., Any], *args: Any) -> Any:
        # One at a time: a consumer is not for several threads at once.
        async with self._asking:
            return await asyncio.to_thread(question, *args)

    def _watermarks(self, topic: Topic, partition: int) -> tuple[int, int]:
        place = TopicPartition(self.settings.topic(topic), partition)
        return watermarks(self._consumer, place, _OFFSET_TIMEOUT_S)

    def _starts(self, topic: Topic, partitions: list[int]) -> dict[int, int]:
        places = [TopicPartition(self.settings.topic(topic), partition) for partition in partitions]
        committed = self._consumer.committed(places, timeout=_OFFSET_TIMEOUT_S)
        return {
            place.partition: place.offset
            if place.offset >= 0
            else self._watermarks(topic, place.partition)[0]
            for place in committed
        }

    def _first(self, topic: Topic, partition: int, offset: int) -> Message | None:
        if self._watermarks(topic, partition)[1] <= offset:
            return None
        # Not the group's consumer: assigning partitions to it must never look like membership.
        reader: Consumer = make_consumer(self.settings)
        try:
            reader.assign([TopicPartition(self.settings.topic(topic), partition, offset)])
            message = reader.poll(_OFFSET_TIMEOUT_S)
            return message if message is not None and message.error() is None else None
        finally:
            reader.close()


class Processor(Protocol):
    """Makes something of one partition; restored on assignment, thrown away on revocation. Never
    blocks.
    """

    async def consume(self, topic: Topic, event: Event, ack: Ack) -> None:
        """Take in an input as the log has it; `ack` it later.

        Raises Rejected for an input that goes to `dead.letters` at once, LogUnavailable when Kafka
        fails. An input that raises anything else is tried once more, and then goes there too.
        """
        ...

    async def work(self) -> None:
        """Do what the inputs so far allow; called after inputs and at every tick. Never called
        twice at once.

        What it raises stops the worker: it knows best which inputs are at fault, and buries them
        itself.
        """
        ...


class Partition:
    """One partition: its processor, what is to be acknowledged, and how far each topic has been
    read.
    """

    def __init__(self, positions: Mapping[str, int], processor: Processor) -> None:
        self.positions = dict(positions)
        self.processor = processor
        self.orders = {name: AckOrder() for name in positions}
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Worker:
    """A Faust app around processors. A subclass adds the agents and restores the processors."""

    consumer: type[Any] = BatchConsumer

    def __init__(
        self, name: str, topics: tuple[Topic, ...], kafka: KafkaSettings, settings: StreamSettings
    ) -> None:
        self.name = name
        self.topics = topics
        self.kafka = kafka
        self.settings = settings
        self.codec = make_codec()
        self.producer = EventProducer(kafka, self.codec, f"fulgurite-{name}")
        self.group_id = f"{kafka.topic_prefix}{name}"
        self.log = Log(kafka, self.codec, self.producer, self.group_id)
        self.partitions: dict[int, Partition] = {}
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None

    def position(self, topic: Topic, partition: int) -> int:
        """One past the last record of a topic that was taken in."""
        return self.partitions[partition].positions[topic.name]

    async def restore(self, since_ms: Mapping[int, int]) -> Mapping[int, Processor]:
        """Processors for partitions, knowing what was written since these record times."""
        raise NotImplementedError

    def decode(self, value: bytes) -> Event:
        """The event of a record. Raises CodecError."""
        return self.codec.decode(value)

    async def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit code, 0. Raises what it failed with, once all is
        stopped.
        """
        app = self._app()
        metrics.watch(LAG, partial(self._lag, app))
        # What is held is many, and never in cycles: to look through it for garbage again and again
        # is a tenth of all work.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_UNCOLLECTED)
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        ticker = asyncio.create_task(self._tick())
        started = asyncio.create_task(app.start())
        started.add_done_callback(self._started)
        crashed = asyncio.create_task(self._watch(app))
        await self._stop.wait()
        for task in (
            started,
            ticker,
            crashed,
            *(partition.task for partition in self.partitions.values()),
        ):
            if task is not None:
                task.cancel()
        try:
            await asyncio.wait_for(app.stop(), _STOP_TIMEOUT_S)
        except TimeoutError:
            logger.warning(
                "faust did not stop in time; the next start reads some inputs again",
                seconds=_STOP_TIMEOUT_S,
            )
        self.producer.close()
        self.log.close()
        if self._failure is not None:
            raise self._failure
        return 0

    def _lag(self, app: Any) -> dict[tuple[str, ...], float]:
        """Records behind the ends of the partitions by topic, as far as the consumer knows them."""
        lag = dict.fromkeys(((topic.name,) for topic in self.topics), 0.0)
        for number, partition in list(self.partitions.items()):
            for topic in self.topics:
                # None before the partition's first fetch.
                end = app.consumer.highwater(TP(self.kafka.topic(topic), number))
                lag[topic.name,] += max(0, (end or 0) - partition.positions[topic.name])
        return lag

    def _started(self, start: asyncio.Task[Any]) -> None:
        if not start.cancelled() and start.exception() is not None:
            self.fail(cast(BaseException, start.exception()))

    def fail(self, error: BaseException) -> None:
        """Stop the worker: what is not acknowledged will be read again."""
        if self._failure is None:
            logger.error(
                "stopping on a failure; what is not acknowledged is read again on restart",
                error=repr(error),
                exc_info=error,
            )
            self._failure = error
        self._stop.set()

    def _app(self) -> Any:
        app = make_app(self.group_id, self.kafka, self.settings)
        install(app, self.consumer)
        app.on_partitions_assigned.connect(self._assigned)
        app.on_partitions_revoked.connect(self._revoked)
        self.add_agents(app)
        return app

    def add_agents(self, app: Any) -> None:
        """Add an agent for each topic, which hands its stream to `consume`."""
        raise NotImplementedError

    async def consume(self, topic: Topic, stream: Any) -> None:
        """Take in the records of an agent's stream until the app stops. A failure stops the
        worker.
        """
        async for event in events_of(stream):
            try:
                await self._take(topic, event)
            except Exception as error:  # noqa: BLE001 - the edge of the worker: any failure stops it, unacknowledged
                self.fail(error)
                await asyncio.Event().wait()
        if not self._stop.is_set():
            self.fail(
                RuntimeError(
                    f"Faust ended the stream of {self.kafka.topic(topic)} before the worker was to "
                    "stop. What is not acknowledged is read again on restart"
                )
            )

    async def _take(self, topic: Topic, event: Any) -> None:
        if not self._ready.is_set():
            await self._ready.wait()
        message = event.message
        partition = self.partitions.get(message.partition)
        if partition is None or message.offset < (expected := partition.positions[topic.name]):
            return
        if message.offset > expected:
            await self._check_hole(topic, message.partition, expected, message.offset)
        ack = partition.orders[topic.name].add(event.ack, int(message.timestamp * 1000))
        failure = await failure_of(
            partial(self._handle, partition.processor, topic, message, ack),
            (CodecError, Rejected),
        )
        if failure is not None:
            await self._bury(topic, message, failure)
            ack()
        # What waits to be acknowledged is held as what was made of it, and not as its bytes too.
        message.value = event.value = None
        partition.positions[topic.name] = message.offset + 1
        metrics.count("fulgurite_consumed_records_total", topic.name)
        partition.wake.set()

    async def _handle(self, processor: Processor, topic: Topic, message: Any, ack: Ack) -> None:
        await processor.consume(topic, self.decode(message.value or b""), ack)

    async def _check_hole(self, topic: Topic, partition: int, expected: int, offset: int) -> None:
        """Raise RuntimeError if the log has records between these two offsets.

        A rebalance has lost those on their way here. Offsets that a transaction or retention left
        out have no records.
        """
        first = await self.log.first_offset(topic, partition, expected)
        if first is None or first < offset:
            raise RuntimeError(
                f"Gap in {self.kafka.topic(topic)}[{partition}]: expected offset {expected}, got "
                f"{offset}. The worker stops; records {expected} to {offset - 1} are read again on "
                "restart."
            )

    async def _bury(self, topic: Topic, message: Any, error: Exception) -> None:
        words = words_of(error)
        trace = None if isinstance(error, CodecError | Rejected) else error
        logger.warning(
            "an input goes to dead.letters",
            topic=topic.name,
            partition=message.partition,
            offset=message.offset,
            error=words,
            exc_info=trace,
        )
        record = Record(
            partition=message.partition,
            offset=message.offset,
            timestamp=int(message.timestamp * 1000),
            key=message.key,
            value=message.value or b"",
            event=None,
            error=words,
        )
        actions = (
            error.actions if isinstance(error, Rejected) else actions_in(self.codec, record.value)
        )
        letter = unusable(record, message.topic, self.name, actions=actions)
        await self.log.publish(DEAD_LETTERS, addressed(letter))

    async def _assigned(self, app: Any, assigned: Iterable[Any], **_: Any) -> None:
        try:
            await self._restore_all(list(assigned))
        except Exception as error:  # noqa: BLE001 - the edge of the worker: any failure stops it, unacknowledged
            self.fail(error)

    async def _restore_all(self, assigned: list[Any]) -> None:
        owned = {
            topic.name: sorted(
                {int(tp.partition) for tp in assigned if tp.topic == self.kafka.topic(topic)}
            )
            for topic in self.topics
        }
        partitions = owned[self.topics[0].name]
        if any(other != partitions for other in owned.values()):
            raise RuntimeError(
                f"Topics are not assigned together to group {self.group_id}: {owned}. Give all "
                "of them the same number of partitions (`fulgurite topics create`)"
            )
        positions: dict[int, dict[str, int]] = {partition: {} for partition in partitions}
        since = dict.fromkeys(partitions, now_ms())
        for topic in self.topics:
            for partition, offset in (await self.log.starts(topic, partitions)).items():
                positions[partition][topic.name] = offset
                timestamp = await self.log.timestamp_at(topic, partition, offset)
                since[partition] = min(
                    since[partition], timestamp if timestamp is not None else since[partition]
                )
        history = int(self.settings.history_s * 1000)
        processors = await self.restore(
            {partition: at - history for partition, at in since.items()}
        )
        for partition, processor in processors.items():
            self.partitions[partition] = Partition(positions[partition], processor)
            self.partitions[partition].task = asyncio.create_task(
                self._work(self.partitions[partition])
            )
        self._ready.set()
        logger.info("ready", partitions=partitions)

    async def _revoked(self, app: Any, revoked: Iterable[Any], **_: Any) -> None:
        self._ready.clear()
        for partition in self.partitions.values():
            if partition.task is not None:
                partition.task.cancel()
        self.partitions.clear()

    async def _work(self, partition: Partition) -> None:
        try:
            while True:
                await partition.wake.wait()
                partition.wake.clear()
                await partition.processor.work()
                # What comes within so short a time is worked on together: looking at all that is
                # open costs more than an input.
                await asyncio.sleep(_REST_S)
        except Exception as error:  # noqa: BLE001 - the edge of the worker: any failure stops it, unacknowledged
            self.fail(error)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.settings.tick_s)
            if self._ready.is_set():
                liveness.beat()
            for partition in self.partitions.values():
                partition.wake.set()

    async def _watch(self, app: Any) -> None:
        while not app.crashed:  # noqa: ASYNC110 - faust has no event to wait for
            await asyncio.sleep(self.settings.tick_s)
        self.fail(
            RuntimeError(
                f"Faust crashed in group {self.group_id}: {app.crash_reason!r}. What is not "
                "acknowledged is read again on restart"
            )
        )


def quieten() -> None:
    """Faust tells more than anyone wants to know."""
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
