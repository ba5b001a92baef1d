"""Heartbeats of long calls: a `heartbeat` in `agent.status` after each period, so that a silent
rollout does not count as dead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from fulgurite.enums import StatusKind
from fulgurite.events import AgentStatus
from fulgurite.ids import derive_id
from fulgurite.topics import AGENT_STATUS
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.producer import EventProducer
from services.common.runtime.clock import now_ms
from services.gateway.identity.rollout_resolver import Identified


class InFlight:
    """A call that has not been answered yet."""

    __slots__ = ("beats_sent", "call_id", "since", "who")

    def __init__(self, call_id: str, who: Identified) -> None:
        self.call_id = call_id
        self.who = who
        self.since = time.monotonic()
        self.beats_sent = 0


class Heartbeats:
    """The calls in flight."""

    def __init__(self, producer: EventProducer, period_s: float, quiet: Callable[[], bool]) -> None:
        """`quiet` tells whether heartbeats cannot be sent now."""
        self._producer = producer
        self._period_s = period_s
        self._quiet = quiet
        self._in_flight: dict[str, InFlight] = {}

    def begin(self, call_id: str, who: Identified) -> None:
        """Note that a call is in flight."""
        self._in_flight[call_id] = InFlight(call_id, who)

    def end(self, call_id: str) -> None:
        """Note that the call is answered, or its client has gone."""
        self._in_flight.pop(call_id, None)

    def count(self) -> int:
        """The number of calls in flight."""
        return len(self._in_flight)

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            await asyncio.sleep(self._period_s / 4)
            now = time.monotonic()
            for flight in list(self._in_flight.values()):
                beats = int((now - flight.since) / self._period_s)
                if beats > flight.beats_sent:
                    flight.beats_sent = beats
                    self._beat(flight, beats)

    def _beat(self, flight: InFlight, beats: int) -> None:
        if self._quiet():
            return
        who = flight.who
        event = AgentStatus(
            event_id=derive_id("heartbeat", flight.call_id, beats),
            event_time=now_ms(),
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
