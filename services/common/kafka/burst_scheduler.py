"""When an event loop's events go to librdkafka, and who serves their acknowledgements.

Each request and each wake-up of the loop costs as much as several events. So events are sent in
bursts, and a busy loop polls for acknowledgements itself.

An event is *held*, then *under way* (part of a burst in librdkafka), then acknowledged.

- Few publishes awaited (below `_MANY`): the events of one turn of the loop become one burst. At
  most `_WINDOW` requests are under way; what comes meanwhile is held. The scheduler's thread serves
  acknowledgements at once.
- Many: bursts go to the producer with the linger, at least `_GATHER_S` apart. The loop polls every
  `_TICK_S` while it must (`_ticking`), and the thread only looks every `_IDLE_S`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from confluent_kafka import KafkaError, Message, Producer

from fulgurite.topics import Topic
from services.common.kafka.delivery import Delivery, EncodedEvent, send
from services.common.kafka.errors import LogUnavailable

_WINDOW = 2
"""Requests under way from one event loop.

librdkafka sends at most five to a partition of an idempotent producer. While more is ready to go,
its thread polls for acknowledgements without a pause: up to half of a gateway's CPU time.
"""

_TICK_S = 0.002
"""How often an event loop that awaits many acknowledgements polls for them."""

_MANY = 8
"""From this many awaited acknowledgements on, the event loop polls for them itself."""

_GATHER_S = 0.004
"""Shortest time between two bursts while many are awaited."""

_IDLE_S = 0.05
"""Longest wait of the thread that serves acknowledgements; bounds how long `close` takes."""

Resolve = Callable[[asyncio.Future[Delivery], Topic, KafkaError | None, Message], None]
"""Ends an event's future with its delivery or its refusal."""


class BurstScheduler:
    """Sends the events of event loops in bursts, and serves the deliveries of both producers."""

    def __init__(
        self, kafka: Producer, kafka_for_bursts: Producer, resolve: Resolve, name: str
    ) -> None:
        """`kafka_for_bursts` takes over while many are awaited; it may be `kafka` itself."""
        self._kafka = kafka
        self._kafka_for_bursts = kafka_for_bursts
        self._producers = [kafka] if kafka_for_bursts is kafka else [kafka, kafka_for_bursts]
        self._resolve = resolve
        self._open = True
        self._loop: asyncio.AbstractEventLoop | None = None
        self._awaited = 0
        """Calls of `publish` that have not returned."""
        self._held: deque[_Outgoing] = deque()
        self._scheduled = False
        """Whether the loop will call `_send_burst` at its next turn."""
        self._last_burst_at = float("-inf")
        self._requests = 0
        """Under way, at most."""
        self._requests_lock = threading.Lock()
        self._ticking = False
        self._thread_serves = False
        self._thread = threading.Thread(target=self._poll, name=f"kafka-{name}", daemon=True)
        self._thread.start()

    async def publish(
        self, topic: Topic, encoded: EncodedEvent, timeout_s: float | None
    ) -> Delivery:
        """Return once the event is acknowledged. Raises LogUnavailable."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Delivery] = loop.create_future()
        self._held.append(_Outgoing(topic, encoded, future))
        if not self._scheduled or self._loop is not loop:
            self._scheduled = True
            loop.call_soon(self._send_burst)
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

    def pending(self) -> int:
        """Return how many events are held or under way."""
        return sum(map(len, self._producers)) + len(self._held)

    def close(self, timeout_s: float) -> int:
        """Flush and stop. Return how many events were left unacknowledged."""
        self._send_burst(everything=True)
        deadline = time.monotonic() + timeout_s
        left = sum(
            [kafka.flush(max(0.0, deadline - time.monotonic())) for kafka in self._producers]
        )
        self._open = False
        self._thread.join()
        return left

    def _send_burst(self, *, everything: bool = False) -> None:
        """Send what is held, unless enough is under way."""
        now = time.monotonic()
        if self._awaited >= _MANY and now - self._last_burst_at < _GATHER_S and not everything:
            return  # `_tick` comes back to it
        self._scheduled = False
        if not self._held or (self._requests >= _WINDOW and not everything):
            return
        self._last_burst_at = now
        held, self._held = self._held, deque()
        burst = _Burst(len(held))
        kafka = self._kafka_for_bursts if self._awaited >= _MANY else self._kafka
        with self._requests_lock:
            self._requests += burst.requests
        for outgoing in held:
            try:
                on_delivery = partial(self._on_delivery, burst, outgoing)
                send(kafka, outgoing.topic, outgoing.encoded, on_delivery)
            except LogUnavailable as error:
                self._count_off(burst)
                if not outgoing.future.done():
                    outgoing.future.set_exception(error)

    def _on_delivery(
        self, burst: _Burst, outgoing: _Outgoing, error: KafkaError | None, message: Message
    ) -> None:
        """Run in the loop's thread or in the scheduler's."""
        self._count_off(burst)
        if threading.get_ident() == outgoing.thread:
            self._finish(outgoing, error, message)
        else:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                outgoing.future.get_loop().call_soon_threadsafe(
                    self._finish, outgoing, error, message
                )

    def _count_off(self, burst: _Burst) -> None:
        with self._requests_lock:
            burst.left -= 1
            if not burst.left:
                self._requests -= burst.requests

    def _finish(self, outgoing: _Outgoing, error: KafkaError | None, message: Message) -> None:
        if not outgoing.future.done():
            self._resolve(outgoing.future, outgoing.topic, error, message)
        if self._held and not self._ticking:
            self._send_burst()

    def _must_tick(self) -> bool:
        if self._awaited >= _MANY:
            return True
        # The thread waits for deliveries of the first producer only.
        apart = any(len(kafka) for kafka in self._producers[1:])
        return apart or (not self._thread_serves and bool(self._awaited or self._held))

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve acknowledgements in the thread of the loop that awaits them; again soon, while it
        awaits many more.
        """
        for kafka in self._producers:
            kafka.poll(0)
        if self._held:
            self._send_burst()
        if self._loop is loop:
            self._ticking = self._must_tick()
            if self._ticking:
                loop.call_later(_TICK_S, self._tick, loop)

    def _poll(self) -> None:
        """Serve acknowledgements and errors; only a few times a second while a loop does."""
        while self._open:
            # In this order: a loop that sees `_thread_serves` may rely on it.
            self._thread_serves = False
            if self._awaited >= _MANY:
                time.sleep(_IDLE_S)
            else:
                self._thread_serves = True
                self._kafka.poll(_IDLE_S)
            for kafka in self._producers:
                kafka.poll(0)


class _Burst:
    """Events that were sent together."""

    __slots__ = ("left", "requests")

    def __init__(self, size: int) -> None:
        self.left = size
        self.requests = min(2, size)
        """librdkafka may be awake already, and send the first event in a request of its own."""


class _Outgoing:
    """An event on its way, and the future that awaits it."""

    __slots__ = ("encoded", "future", "thread", "topic")

    def __init__(
        self, topic: Topic, encoded: EncodedEvent, future: asyncio.Future[Delivery]
    ) -> None:
        self.topic = topic
        self.encoded = encoded
        self.future = future
        self.thread = threading.get_ident()


def _expire(future: asyncio.Future[Delivery], why: str) -> None:
    if not future.done():
        future.set_exception(LogUnavailable(why))
