"""What the aggregator and the rewarder are compared with: a Faust worker on the same topics, with
the same settings, that does nothing.

`python -m benchmarks.streams_noop noop|fed NAME TOPIC...`; as they do, it tells on stderr when it
is ready, and ends at SIGTERM.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from faust.transport.drivers.aiokafka import Consumer

from fulgurite.topics import TOPICS
from services.aggregator.settings import AggregatorSettings
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs
from services.common.streaming.faust_app import raw_topic
from services.common.streaming.faust_overrides import BatchConsumer, events_of
from services.common.streaming.worker import Processor, Worker, quieten


class NoOp(Worker):
    """Neither decodes nor keeps anything: Faust acknowledges each record when the agent asks for
    the next.
    """

    consumer = Consumer
    """Faust's own, for what we are compared with is Faust as it comes."""

    async def restore(self, since_ms: Mapping[int, int]) -> Mapping[int, Processor]:
        """Nothing to know."""
        return {}

    def add_agents(self, app: Any) -> None:
        """One agent for each topic."""
        for topic in self.topics:
            channel = raw_topic(app, self.kafka, topic)
            app.agent(channel, name=f"{self.name}.{topic.name}")(self._read)

    async def _read(self, stream: Any) -> None:
        await self._ready.wait()
        await self._drain(stream)

    async def _drain(self, stream: Any) -> None:
        async for _ in stream:
            pass


class Fed(NoOp):
    """It does nothing either, with records that come as ours do: what is left of Faust in our
    workers.
    """

    consumer = BatchConsumer

    async def _drain(self, stream: Any) -> None:
        async for event in events_of(stream):
            event.ack()


async def run(kind: str, name: str, names: list[str]) -> int:
    """Until told to stop; the exit code."""
    logs.configure("noop", "INFO")
    quieten()
    topics = tuple(topic for topic in TOPICS if topic.name in names)
    made: type[NoOp] = Fed if kind == "fed" else NoOp
    return await made(f"{kind}-{name}", topics, KafkaSettings(), AggregatorSettings()).run()


if __name__ == "__main__":
    sys.exit(asyncio.run(run(sys.argv[1], sys.argv[2], sys.argv[3:])))
