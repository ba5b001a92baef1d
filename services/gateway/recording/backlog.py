"""Events that wait on disk for Kafka. While one waits, every later event of this replica queues
behind it.

They are sent in the order in which they came: a key's next event leaves when the one before it was
acknowledged. After a crash some are sent again; readers recognise them by their ids.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.errors import CodecError
from fulgurite.events import Event
from fulgurite.topics import MAX_MESSAGE_BYTES, TOPICS, Topic
from services.common.kafka.delivery import Delivery
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.producer import EventProducer
from services.common.runtime import logs
from services.gateway.recording.spool import Spool, SpoolError

log = logs.get(__name__)

_TOPICS = {topic.name: topic for topic in TOPICS}
_AT_ONCE = 256
"""Events of at most this many keys are sent at once."""

_PAUSE_S = 0.25
_ROOM = 64 * 1024
"""For a record's headers and framing, within the log's message limit."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One event as it is stored in the spool."""

    topic: str
    key: str
    traceparent: str | None
    at: float
    """When it came, Unix seconds."""
    event: bytes
    """The event in Avro: a later release reads it with its writer's schema."""


class Ticket:
    """One event in the queue."""

    __slots__ = ("delivered", "stored")

    def __init__(self, stored: asyncio.Future[None]) -> None:
        self.stored = stored
        """Ends when the event is on the disk, or with SpoolError."""
        self.delivered: asyncio.Future[Delivery] = stored.get_loop().create_future()
        """Ends when Kafka acknowledged it."""


class Backlog:
    """The queue of one replica, in its spool."""

    def __init__(
        self,
        spool: Spool,
        producer: EventProducer,
        codec: Codec,
        may_try: Callable[[], bool],
        on_delivery: Callable[[], None],
    ) -> None:
        """`may_try` tells whether sending makes sense now. `on_delivery` is called when Kafka
        acknowledges an event.
        """
        self.spool = spool
        self._producer = producer
        self._codec = codec
        self._may_try = may_try
        self._on_delivery = on_delivery
        self._tickets: deque[Ticket] = deque()
        self._inherited = spool.depth
        """Events of an earlier process that are still to be sent; no caller waits for them."""
        self._oldest: float | None = None
        self._goes_first = True
        """Whether the producer may still hold events from before the spool was used. Later events
        all come through the spool, one batch after another. The producer's own count lags behind
        its delivery reports, so it is not asked again.
        """
        self._wake = asyncio.Event()
        self._decode = msgspec.msgpack.Decoder(Entry).decode
        self._encode = msgspec.msgpack.Encoder().encode
        if self._inherited:
            log.warning(
                "events of an earlier process are in the spool and are sent now",
                events=spool.depth,
                bytes=spool.bytes,
            )
            self._wake.set()

    @property
    def busy(self) -> bool:
        """Whether anything is queued, so that everything else must queue too."""
        return self.spool.depth > 0

    def age_s(self) -> float:
        """Seconds that the oldest event has waited, as far as the queue was read; 0 if it
        is empty.
        """
        return (
            0.0 if self._oldest is None or not self.busy else max(0.0, time.time() - self._oldest)
        )

    def append(self, topic: Topic, key: str, event: Event, traceparent: str | None) -> Ticket:
        """Queue an event. Raises SpoolError, InvalidEvent."""
        data = self._codec.encode(event)
        if len(data) > MAX_MESSAGE_BYTES - _ROOM:
            raise SpoolError(
                f"an event of {len(data):,} bytes is more than the log's messages may have"
            )
        now = time.time()
        ticket = Ticket(
            self.spool.append(self._encode(Entry(topic.name, key, traceparent, now, data)))
        )
        if self._oldest is None:
            self._oldest = now
        self._tickets.append(ticket)
        ticket.stored.add_done_callback(lambda stored: self._stored(ticket, stored))
        return ticket

    async def drain(self) -> None:
        """Send what is queued, until cancelled."""
        while True:
            await self._wake.wait()
            try:
                sent = await self._drain_some()
            except OSError as error:
                log.error("the spool cannot be read", error=str(error))
                sent = False
            if not self.busy:
                self._oldest = None
                self._goes_first = True
                self._wake.clear()
                log.info("the spool is empty: events go to the log directly")
            elif not sent:
                await asyncio.sleep(_PAUSE_S)

    def _stored(self, ticket: Ticket, stored: asyncio.Future[None]) -> None:
        if stored.cancelled() or stored.exception() is not None:
            self._tickets.remove(ticket)
        self._wake.set()

    async def _drain_some(self) -> bool:
        """Send the next batch; returns whether there was one."""
        if not self._may_try() or (self._goes_first and self._producer.pending()):
            return False
        self._goes_first = False
        payloads = await self.spool.front()
        if not payloads:
            return False
        entries = self._next(payloads)
        if not entries:
            log.error(
                "an event in the spool cannot be read; its file is kept under another name",
                bytes=len(payloads[0]),
            )
            self._drop([None], unreadable=True)
            return True
        deliveries = await self._send(entries)
        self._drop(deliveries)
        return True

    def _next(self, payloads: Sequence[bytes]) -> list[tuple[Entry, Event]]:
        """The leading events of distinct keys; empty if the first cannot be read."""
        chosen: dict[str, tuple[Entry, Event]] = {}
        for payload in payloads:
            try:
                entry = self._decode(payload)
                event = self._codec.decode(entry.event)
            except (msgspec.DecodeError, CodecError):
                break
            if entry.key in chosen or entry.topic not in _TOPICS or len(chosen) == _AT_ONCE:
                break
            chosen[entry.key] = entry, event
        first = next(iter(chosen.values()), None)
        self._oldest = first[0].at if first else self._oldest
        return list(chosen.values())

    async def _send(self, entries: Sequence[tuple[Entry, Event]]) -> list[Delivery | None]:
        """Return once all are acknowledged. Events that Kafka did not take are sent again."""
        done: list[Delivery | None] = [None] * len(entries)
        while missing := [index for index, delivery in enumerate(done) if delivery is None]:
            futures = {index: self._submit(*entries[index]) for index in missing}
            for index, future in futures.items():
                try:
                    done[index] = await asyncio.wrap_future(future)
                    self._on_delivery()
                except LogUnavailable as error:
                    log.warning(
                        "the log does not take an event from the spool; it is sent again",
                        error=str(error),
                    )
            if None in done:
                await asyncio.sleep(_PAUSE_S)
        return done

    def _submit(self, entry: Entry, event: Event) -> Future[Delivery]:
        try:
            return self._producer.submit(_TOPICS[entry.topic], entry.key, event, entry.traceparent)
        except LogUnavailable as error:
            failed: Future[Delivery] = Future()
            failed.set_exception(error)
            return failed

    def _drop(self, deliveries: Sequence[Delivery | None], *, unreadable: bool = False) -> None:
        self.spool.drop(len(deliveries), unreadable=unreadable)
        for delivery in deliveries:
            if self._inherited:
                self._inherited -= 1
                continue
            ticket = self._tickets.popleft()
            if not ticket.delivered.done() and delivery is not None:
                ticket.delivered.set_result(delivery)
