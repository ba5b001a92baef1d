"""The aggregator's Faust app: `llm.calls` and `agent.status` become `episodes`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from fulgurite.events import Episode
from fulgurite.topics import AGENT_STATUS, EPISODES, LLM_CALLS
from services.aggregator.call_expander import CallExpander
from services.aggregator.partition import AggregatorPartition
from services.aggregator.settings import AggregatorSettings
from services.common.kafka.consumer import read_all
from services.common.kafka.logged_calls import CallReader
from services.common.kafka.settings import KafkaSettings
from services.common.streaming.faust_app import raw_topic
from services.common.streaming.worker import Worker


class Aggregator(Worker):
    """Calls and status → episodes."""

    def __init__(self, kafka: KafkaSettings, settings: AggregatorSettings) -> None:
        super().__init__("aggregator", (LLM_CALLS, AGENT_STATUS), kafka, settings)
        self._own = settings
        self._calls = CallExpander(CallReader(kafka, self.codec))

    def add_agents(self, app: Any) -> None:
        """One agent for each input topic."""

        @app.agent(raw_topic(app, self.kafka, LLM_CALLS), name="aggregator.llm.calls")
        async def consume_calls(stream: Any) -> None:
            await self.consume(LLM_CALLS, stream)

        @app.agent(raw_topic(app, self.kafka, AGENT_STATUS), name="aggregator.agent.status")
        async def consume_statuses(stream: Any) -> None:
            await self.consume(AGENT_STATUS, stream)

    async def restore(self, since_ms: Mapping[int, int]) -> Mapping[int, AggregatorPartition]:
        """Partitions that know which episodes have been written since."""
        since = min(since_ms.values(), default=0)
        written = await asyncio.to_thread(self._written, list(since_ms), since)
        return {
            number: AggregatorPartition(
                number,
                self.log,
                self._own,
                partial(self.position, partition=number),
                self._calls.expand,
                written[number],
                since,
            )
            for number in since_ms
        }

    def _written(self, partitions: list[int], since: int) -> dict[int, list[Episode]]:
        written: dict[int, list[Episode]] = {number: [] for number in partitions}
        for record in read_all(
            self.kafka, EPISODES, self.codec, partitions=partitions, since_ms=since
        ):
            if isinstance(record.event, Episode):
                written[record.partition].append(record.event)
        return written
