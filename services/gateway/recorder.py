"""The way into the log. An event that `publish` returned for is acknowledged by Kafka; one it raised for may or may not arrive.

`refuse` mode: `check` refuses before anything is generated while no broker is reachable, or while some event has been waiting
for its acknowledgement for longer than a fail-over takes. Heartbeats tell of calls that take long.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from confluent_kafka import KafkaException

from fulgurite.errors import CodecError
from fulgurite.events import AgentStatus, Event, LlmCall
from fulgurite.ids import derive_id
from fulgurite.kinds import StatusKind
from fulgurite.topics import AGENT_STATUS, LLM_CALLS, Topic
from services import logs
from services.gateway.identity import Identified
from services.gateway.metrics import Metrics
from services.gateway.problems import Unavailable
from services.gateway.settings import GatewaySettings
from services.kafka import Delivery, EventProducer, KafkaSettings, LogUnavailable
from services.topic_admin import admin_client

log = logs.get(__name__)

_PROBE_S = 1.0
_UNANSWERED = (
    "The event log (Kafka) is unavailable, and an answer that cannot be recorded is not given. Nothing was generated; try again shortly."
)
_BACKGROUND_LIMIT = 1000
"""Refusals waiting for the log: beyond it they are only counted, so that a flood of them does not crowd out answers."""


class InFlight:
    """A call that has not been answered yet."""

    __slots__ = ("call_id", "since", "told", "who")

    def __init__(self, call_id: str, who: Identified, now: float) -> None:
        self.call_id = call_id
        self.who = who
        self.since = now
        self.told = 0


class Recorder:
    """Publishes calls, statuses and rewards, and knows whether the log takes them."""

    def __init__(self, producer: EventProducer, kafka: KafkaSettings, settings: GatewaySettings, metrics: Metrics) -> None:
        self._producer = producer
        self._settings = settings
        self._metrics = metrics
        self._admin = admin_client(kafka)
        self._pending: dict[str, float] = {}
        self._answered_at = float("-inf")
        self._background: set[asyncio.Task[None]] = set()
        self._in_flight: dict[str, InFlight] = {}
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the heartbeats and the look-out for brokers that come back."""
        self._loops = [asyncio.create_task(self._heartbeats()), asyncio.create_task(self._look_out())]

    def problem(self) -> str | None:
        """Why the log is unavailable; None while it takes events."""
        now = time.monotonic()
        if self._producer.unreachable_for_s > 0 and now - self._answered_at > 3 * _PROBE_S:
            return "no Kafka broker can be reached"
        oldest = next(iter(self._pending.values()), now)
        if now - oldest > self._settings.log_stall_s:
            return f"Kafka has not acknowledged an event for {now - oldest:.0f} s (are enough replicas in sync?)"
        return None

    def check(self) -> None:
        """Raise Unavailable while the log would not take a call."""
        problem = self.problem()
        if problem is not None:
            self._metrics.log_refusals.inc()
            raise Unavailable(_UNANSWERED)

    def begin(self, call_id: str, who: Identified) -> None:
        """A call is in flight from now on, until `record_call` or `forget`."""
        self._in_flight[call_id] = InFlight(call_id, who, time.monotonic())
        self._metrics.in_flight.inc()

    def end(self, call_id: str) -> None:
        """The call is answered, or nobody is left to answer."""
        if self._in_flight.pop(call_id, None) is not None:
            self._metrics.in_flight.dec()

    async def record_call(self, call: LlmCall) -> Delivery:
        """Return once the call is in the log. Raises Unavailable."""
        self._metrics.calls.labels(call.alias if call.backend else "", call.outcome.value, call.failure.value if call.failure else "").inc()
        return await self.publish(LLM_CALLS, call.group_id, call, call.traceparent)

    def record_call_soon(self, call: LlmCall) -> None:
        """Record without waiting: for refusals because of the log itself."""
        if len(self._background) >= _BACKGROUND_LIMIT:
            self._metrics.events.labels(LLM_CALLS.name, "dropped").inc()
            return
        task = asyncio.create_task(self._quietly(call))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def publish(self, topic: Topic, key: str, event: Event, traceparent: str | None = None) -> Delivery:
        """Return once the event is acknowledged. Raises Unavailable."""
        started = time.monotonic()
        self._pending[event.event_id] = started
        try:
            delivery = await self._producer.publish(topic, key, event, traceparent, self._settings.ack_timeout_s)
        except (LogUnavailable, CodecError) as error:
            self._metrics.events.labels(topic.name, "failed").inc()
            log.error("event not recorded", topic=topic.name, event_id=event.event_id, error=str(error))
            raise Unavailable("The event log (Kafka) did not take this in time. Try again; what is recorded twice counts once.") from error
        finally:
            self._pending.pop(event.event_id, None)
        self._metrics.events.labels(topic.name, "acknowledged").inc()
        self._metrics.ack_seconds.observe(time.monotonic() - started)
        return delivery

    async def close(self) -> int:
        """Stop the loops, flush; returns how many events are left unacknowledged."""
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        if self._background:
            await asyncio.wait(self._background, timeout=5)
        return await asyncio.to_thread(self._producer.close)

    async def _quietly(self, call: LlmCall) -> None:
        with suppress(Unavailable):
            await self.record_call(call)

    async def _heartbeats(self) -> None:
        period = self._settings.heartbeat_s
        while True:
            await asyncio.sleep(period / 4)
            now = time.monotonic()
            for flight in list(self._in_flight.values()):
                beats = int((now - flight.since) / period)
                if beats > flight.told:
                    flight.told = beats
                    self._beat(flight, beats)

    def _beat(self, flight: InFlight, beats: int) -> None:
        who = flight.who
        event = AgentStatus(
            event_id=derive_id("heartbeat", flight.call_id, beats),
            event_time=int(time.time() * 1000),
            group_id=who.group_id,
            rollout_id=who.rollout_id,
            attempt=who.attempt,
            mode=who.mode,
            kind=StatusKind.heartbeat,
            source="gateway",
            will_retry=False,
            call_id=flight.call_id,
        )
        with suppress(LogUnavailable):
            self._producer.submit(AGENT_STATUS, who.group_id, event)

    async def _look_out(self) -> None:
        """librdkafka says when all brokers are gone, but not when they are back: ask, while it matters."""
        while True:
            await asyncio.sleep(_PROBE_S)
            if self._producer.unreachable_for_s > 0:
                with suppress(KafkaException):
                    await asyncio.to_thread(self._admin.list_topics, timeout=_PROBE_S)
                    self._answered_at = time.monotonic()
