"""The way into the log. An event is safe once `publish` has returned: acknowledged by Kafka or, in
mode `spool`, synced to this machine's disk.

While the log is away, the outage mode of the rollout's mode decides: `refuse` (calls are refused
before anything is generated), `spool` (events wait on disk, and all later ones of this replica
behind them) or `serve` (calls are answered, and counted as unlogged). The log is away while no
broker is reachable, or while an event waits longer for its acknowledgement than a fail-over takes.
Calls are compacted first: deltas of their parents, with large texts stored outside Kafka. Long
calls send heartbeats.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from confluent_kafka import KafkaException

from fulgurite.avro.codec import Codec
from fulgurite.enums import Mode
from fulgurite.errors import CodecError
from fulgurite.events import Event, LlmCall
from fulgurite.topics import LLM_CALLS, Topic
from services.common.kafka.delivery import Delivery
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import admin_client
from services.common.runtime import logs
from services.gateway.errors import Unavailable, Unrecordable
from services.gateway.identity.rollout_resolver import Identified
from services.gateway.recording.backlog import Backlog, Ticket
from services.gateway.recording.compaction import Compactor
from services.gateway.recording.heartbeats import Heartbeats
from services.gateway.recording.spool import Spool, SpoolError
from services.gateway.settings import GatewaySettings, OutageMode
from services.gateway.telemetry.metrics import Metrics

log = logs.get(__name__)

_PROBE_S = 1.0
_UNANSWERED = (
    "The event log (Kafka) is unavailable, and an answer that cannot be recorded is not given. "
    "Nothing was generated; try again shortly."
)
_NOT_TAKEN = (
    "The event log (Kafka) did not acknowledge this in time. Try again; an event that is "
    "recorded twice counts once."
)
_DOES_NOT_FIT = (
    "This cannot be written to the event log (Kafka): a value is out of the range that the log "
    "can hold. Send smaller values; the gateway's log names the value."
)
_BACKGROUND_LIMIT = 1000
"""Refusals that wait for the log. Further ones are only counted, so that a flood of them does not
push out answers.
"""

_TRIED = 100
"""Events without a waiting caller that are sent even while the log is away."""


class Waiting:
    """An event that Kafka has not acknowledged yet."""

    __slots__ = ("event", "key", "outage_mode", "since", "ticket", "topic", "traceparent")

    def __init__(
        self, topic: Topic, key: str, event: Event, traceparent: str | None, outage_mode: OutageMode
    ) -> None:
        self.topic = topic
        self.key = key
        self.event = event
        self.traceparent = traceparent
        self.outage_mode = outage_mode
        self.since = time.monotonic()
        self.ticket: Ticket | None = None
        """Its place in the spool, once it has one."""


class Recorder:
    """Publishes calls, statuses and rewards, and knows whether the log takes them."""

    def __init__(
        self,
        producer: EventProducer,
        kafka: KafkaSettings,
        codec: Codec,
        settings: GatewaySettings,
        metrics: Metrics,
    ) -> None:
        """Raises SpoolInUse, OSError, and ValueError for settings that contradict each other."""
        self._producer = producer
        self._settings = settings
        self._metrics = metrics
        self._outage_modes = settings.outage_modes()
        self._compactor = Compactor(settings, metrics)
        self._backlog: Backlog | None = None
        if settings.spool_dir is not None:
            spool = Spool(settings.spool_dir, settings.spool_max_bytes)
            self._backlog = Backlog(
                spool, producer, codec, lambda: not self._unreachable(), self._log_is_back
            )
            metrics.watch_spool(lambda: spool.depth, lambda: spool.bytes, self._backlog.age_s)
        self._admin = admin_client(kafka)
        self._waiting: dict[str, Waiting] = {}
        self._failing_since: float | None = None
        """When the first event came that Kafka did not take; None after it takes one again."""
        self._failed_at = self._answered_at = float("-inf")
        self._background: set[asyncio.Task[None]] = set()
        # Behind a spool the producer's delay says nothing of the events that wait on disk.
        self._heartbeats = Heartbeats(producer, settings.heartbeat_s, self._queues)
        metrics.watch_calls(self._heartbeats.count)
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the heartbeats, the watch for brokers that come back, and the sender of
        the spool.
        """
        self._loops = [
            asyncio.create_task(self._heartbeats.run()),
            asyncio.create_task(self._look_out()),
        ]
        if self._backlog is not None:
            self._loops.append(asyncio.create_task(self._backlog.drain()))

    def problem(self) -> str | None:
        """Why the log is unavailable; None while it takes events."""
        if self._unreachable():
            return "no Kafka broker can be reached"
        now = time.monotonic()
        first = next(iter(self._waiting.values()), None)
        oldest = min(now if first is None else first.since, self._failing_since or now)
        if now - oldest > self._settings.log_stall_s:
            return (
                f"Kafka has not acknowledged an event for {now - oldest:.0f} s (are enough "
                "replicas in sync?)"
            )
        return None

    def spool_report(self) -> dict[str, object] | None:
        """What waits on disk, and why no more can; None without a spool."""
        if self._backlog is None:
            return None
        spool = self._backlog.spool
        return {
            "events": spool.depth,
            "bytes": spool.bytes,
            "oldest_s": round(self._backlog.age_s(), 1),
            "problem": self._spool_problem(),
        }

    def welcome(self) -> bool:
        """Whether calls of any mode would be answered."""
        return any(self._refusal(mode) is None for mode in Mode)

    def check(self, mode: Mode) -> None:
        """Raise Unavailable while no call of this mode may be generated."""
        refusal = self._refusal(mode)
        if refusal is not None:
            self._metrics.log_refusals.inc()
            raise Unavailable(refusal)

    def begin(self, call_id: str, who: Identified) -> None:
        """Note that a call is in flight, until `end`."""
        self._heartbeats.begin(call_id, who)

    def end(self, call_id: str) -> None:
        """Note that the call is answered, or its client has gone."""
        self._heartbeats.end(call_id)

    async def record_call(self, call: LlmCall) -> Delivery | None:
        """Return once the call is safe: as `publish` does. Raises Unavailable, Unrecordable."""
        self._metrics.calls(
            call.alias if call.backend else "",
            call.outcome.value,
            call.failure.value if call.failure else "",
        ).inc()
        compacted = await self._compactor.compact(call)
        delivery = await self.publish(
            LLM_CALLS, call.group_id, compacted.event, call.traceparent, call.mode
        )
        if delivery is not None:
            self._compactor.acknowledged(compacted, delivery)
        return delivery

    def record_call_soon(self, call: LlmCall) -> None:
        """Record without waiting; for refusals that the log itself causes."""
        if len(self._background) >= _BACKGROUND_LIMIT:
            self._metrics.events(LLM_CALLS.name, "dropped").inc()
            return
        task = asyncio.create_task(self._quietly(call))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def publish(
        self,
        topic: Topic,
        key: str,
        event: Event,
        traceparent: str | None = None,
        mode: Mode = Mode.live,
    ) -> Delivery | None:
        """Return once the event is safe: its place in Kafka, or None if it waits in the spool or is
        not logged. Raises Unavailable; Unrecordable for an event that does not fit its schema.
        """
        waiting = Waiting(topic, key, event, traceparent, self._outage_modes[mode])
        try:
            if self._backlog is not None and self._backlog.busy:
                return await self._queue(self._backlog, waiting)
            if waiting.outage_mode != "refuse" and self.problem() is not None:
                return await self._without_log(waiting)
            return await self._send(waiting)
        except CodecError as error:
            self._metrics.events(topic.name, "failed").inc()
            log.error(
                "event not recorded", topic=topic.name, event_id=event.event_id, error=str(error)
            )
            raise Unrecordable(_DOES_NOT_FIT) from error
        except (SpoolError, LogUnavailable) as error:
            if waiting.outage_mode == "serve":
                self._unlogged(waiting)
                return None
            self._metrics.events(topic.name, "failed").inc()
            log.error(
                "event not recorded", topic=topic.name, event_id=event.event_id, error=str(error)
            )
            raise Unavailable(_NOT_TAKEN) from error

    async def close(self) -> int:
        """Stop the loops and flush; returns how many events are left unacknowledged."""
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        if self._background:
            await asyncio.wait(self._background, timeout=5)
        left = await asyncio.to_thread(self._producer.close)
        if self._backlog is not None:
            await self._backlog.spool.close()
            if self._backlog.busy:
                log.warning(
                    "events stay in the spool until the gateway starts again",
                    events=self._backlog.spool.depth,
                )
        return left

    def _refusal(self, mode: Mode) -> str | None:
        outage_mode, away = self._outage_modes[mode], self.problem() is not None
        if outage_mode == "serve":
            return None
        # An event that cannot be sent now has to queue, whatever its mode.
        queues = self._backlog is not None and (
            self._backlog.busy or (away and outage_mode == "spool")
        )
        if queues and (problem := self._spool_problem()) is not None:
            return (
                f"The event log (Kafka) is unavailable, and {problem}. Nothing was generated; try "
                "again later."
            )
        return _UNANSWERED if away and outage_mode == "refuse" else None

    def _spool_problem(self) -> str | None:
        spool = self._backlog.spool if self._backlog is not None else None
        if spool is None:
            return None
        return "this gateway's spool is full" if spool.full else spool.broken

    def _queues(self) -> bool:
        return self._backlog is not None and self._backlog.busy

    def _unreachable(self) -> bool:
        return (
            self._producer.unreachable_for_s > 0
            and time.monotonic() - self._answered_at > 3 * _PROBE_S
        )

    async def _send(self, waiting: Waiting) -> Delivery | None:
        """Send to Kafka directly. Raises LogUnavailable, CodecError, SpoolError."""
        settings, event_id = self._settings, waiting.event.event_id
        patience = (
            settings.ack_timeout_s
            if waiting.outage_mode == "refuse"
            else min(settings.log_patience_s, settings.ack_timeout_s)
        )
        self._waiting[event_id] = waiting
        try:
            delivery = await self._producer.publish(
                waiting.topic, waiting.key, waiting.event, waiting.traceparent, patience
            )
        except LogUnavailable:
            if waiting.outage_mode == "refuse":
                raise
            # Only the next call can find out in mode `refuse` that the log is back.
            self._failing_since, self._failed_at = (
                self._failing_since or waiting.since,
                time.monotonic(),
            )
            return await self._without_log(waiting)
        finally:
            self._waiting.pop(event_id, None)
        self._acknowledged(waiting)
        return delivery

    async def _without_log(self, waiting: Waiting) -> None:
        """Handle an event that the log did not take. Raises SpoolError, CodecError."""
        if self._backlog is None or waiting.outage_mode == "serve":
            self._unlogged(waiting)
            self._try(waiting)
            return
        self._divert(self._backlog, waiting)
        assert waiting.ticket is not None
        await self._stored(waiting, waiting.ticket)

    def _unlogged(self, waiting: Waiting) -> None:
        self._metrics.unlogged.labels(waiting.topic.name).inc()
        log.warning(
            "served without the log: this event is not recorded (outage mode `serve`)",
            topic=waiting.topic.name,
            event_id=waiting.event.event_id,
        )

    def _try(self, waiting: Waiting) -> None:
        """Send an event that no caller waits for: its delivery shows when the log is back."""
        if waiting.event.event_id in self._waiting or self._producer.pending() > _TRIED:
            return
        with suppress(LogUnavailable):
            tried = self._producer.submit(
                waiting.topic, waiting.key, waiting.event, waiting.traceparent
            )
            loop = asyncio.get_running_loop()
            tried.add_done_callback(
                lambda done: None if done.exception() else _soon(loop, self._log_is_back)
            )

    def _log_is_back(self) -> None:
        self._failing_since = None

    def _divert(self, backlog: Backlog, late: Waiting) -> None:
        """Spool first what came earlier and still waits for Kafka: a key's events stay in order.
        Raises as `append`.
        """
        for waiting in [*self._waiting.values(), late]:
            if waiting.outage_mode == "spool" and waiting.ticket is None:
                waiting.ticket = backlog.append(
                    waiting.topic, waiting.key, waiting.event, waiting.traceparent
                )

    async def _queue(self, backlog: Backlog, waiting: Waiting) -> Delivery | None:
        """Queue behind the spool's events. In mode `refuse` the promise is Kafka's, so its turn is
        awaited. Raises as `_send`.
        """
        ticket = backlog.append(waiting.topic, waiting.key, waiting.event, waiting.traceparent)
        if waiting.outage_mode != "refuse":
            await self._stored(waiting, ticket)
            return None
        await asyncio.shield(ticket.stored)
        try:
            delivery = await asyncio.wait_for(
                asyncio.shield(ticket.delivered), self._settings.ack_timeout_s
            )
        except TimeoutError:
            raise LogUnavailable(
                f"{waiting.topic.name}: still behind the spool after "
                f"{self._settings.ack_timeout_s} s"
            ) from None
        self._acknowledged(waiting)
        return delivery

    async def _stored(self, waiting: Waiting, ticket: Ticket) -> None:
        await asyncio.shield(ticket.stored)
        self._metrics.events(waiting.topic.name, "spooled").inc()

    def _acknowledged(self, waiting: Waiting) -> None:
        self._log_is_back()
        self._metrics.events(waiting.topic.name, "acknowledged").inc()
        self._metrics.ack_seconds.observe(time.monotonic() - waiting.since)

    async def _quietly(self, call: LlmCall) -> None:
        with suppress(Unavailable):
            await self.record_call(call)

    async def _look_out(self) -> None:
        """Ask brokers while they may be back: librdkafka reports when all are gone, but not when
        they are back.
        """
        while True:
            await asyncio.sleep(_PROBE_S)
            if (
                not self._queues()
                and time.monotonic() - self._failed_at > 2 * self._settings.log_stall_s
            ):
                # No event is under way that would show it: let the next one find out.
                self._log_is_back()
            if self._producer.unreachable_for_s > 0:
                with suppress(KafkaException):
                    await asyncio.to_thread(self._admin.list_topics, timeout=_PROBE_S)
                    self._answered_at = time.monotonic()


def _soon(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    """Run work in the loop from another thread; ignored if the loop is closed."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(work)
