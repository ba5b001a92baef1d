"""A producer whose log is a list, which a test can take away."""

from __future__ import annotations

import asyncio
import concurrent.futures

from fulgurite.events import Event
from fulgurite.topics import Topic
from services.common.kafka.delivery import Delivery
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.producer import EventProducer


class MemoryProducer(EventProducer):
    """What was acknowledged, in order. `away`: nothing is acknowledged; `failing`: so many sends
    fail first.
    """

    def __init__(self) -> None:
        self.log: list[tuple[str, Event]] = []
        self.away = False
        self.failing = 0
        self.unreachable = 0.0
        self.stuck: list[tuple[str, Event]] = []
        """Sent while the log was away: the client gave up, the producer did not."""

    @property
    def unreachable_for_s(self) -> float:
        return self.unreachable

    def pending(self) -> int:
        return len(self.stuck)

    def submit(
        self, topic: Topic, key: str, event: Event, traceparent: str | None = None
    ) -> concurrent.futures.Future[Delivery]:
        future: concurrent.futures.Future[Delivery] = concurrent.futures.Future()
        if self.away or self.failing:
            self.failing = max(0, self.failing - 1)
            future.set_exception(LogUnavailable("away"))
        else:
            self.log.append((key, event))
            future.set_result(Delivery(0, len(self.log) - 1))
        return future

    async def publish(
        self,
        topic: Topic,
        key: str,
        event: Event,
        traceparent: str | None = None,
        timeout_s: float | None = None,
    ) -> Delivery:
        if not self.away:
            return await asyncio.wrap_future(self.submit(topic, key, event))
        self.stuck.append((key, event))
        await asyncio.sleep(timeout_s or 0)
        raise LogUnavailable("no acknowledgement")

    def come_back(self) -> None:
        """What was stuck is older than all that is sent from now on."""
        self.away = False
        self.log += self.stuck
        self.stuck.clear()

    def close(self, timeout_s: float = 10.0) -> int:
        return len(self.stuck)

    def ids(self, key: str | None = None) -> list[str]:
        """The events of a key, each where it came first."""
        return list(dict.fromkeys(event.event_id for k, event in self.log if key in (None, k)))
