"""The aggregator: reads `llm.calls` and `agent.status`, writes `episodes` (and its verdicts to
`agent.status`).

`python -m services.aggregator.main`; SIGTERM stops it. See README.md for what it promises.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from functools import partial

from fulgurite.events import Episode
from fulgurite.topics import AGENT_STATUS, EPISODES, LLM_CALLS
from services.aggregator.call_expander import CallExpander
from services.aggregator.partition import AggregatorPartition
from services.aggregator.settings import AggregatorSettings
from services.common.kafka.consumer import read_all
from services.common.kafka.logged_calls import CallReader
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import check_topics
from services.common.runtime import logs
from services.common.runtime.ending import run_service
from services.common.streaming.worker import Worker, quieten


class Aggregator(Worker):
    """Calls and status → episodes."""

    def __init__(self, kafka: KafkaSettings, settings: AggregatorSettings) -> None:
        super().__init__("aggregator", (LLM_CALLS, AGENT_STATUS), kafka, settings)
        self._own = settings
        self._calls = CallExpander(CallReader(kafka, self.codec))

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


async def run() -> int:
    """Until told to stop; the exit code."""
    settings = AggregatorSettings()
    logs.configure("aggregator", settings.log_level)
    quieten()
    kafka = KafkaSettings()
    check_topics(kafka)
    return await Aggregator(kafka, settings).run()


if __name__ == "__main__":
    sys.exit(run_service("aggregator", lambda: asyncio.run(run())))
