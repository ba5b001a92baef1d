"""The aggregator: reads `llm.calls` and `agent.status`, writes `episodes` (and its verdicts to
`agent.status`).

`python -m services.aggregator.main`; SIGTERM stops it. See README.md for what it promises.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from functools import partial

from fulgurite.calls.claim_checks import claims_of
from fulgurite.calls.deltas import restore
from fulgurite.errors import BadClaim, BrokenDelta
from fulgurite.events import Episode, Event, LlmCall
from fulgurite.tokens import PromptHashes
from fulgurite.topics import AGENT_STATUS, EPISODES, LLM_CALLS
from services.aggregator.partition import AggregatorPartition
from services.aggregator.settings import AggregatorSettings
from services.common.blobs.blob_store import redeemed
from services.common.kafka.consumer import read_all
from services.common.kafka.dead_letters import actions_of
from services.common.kafka.logged_calls import CallReader
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import check_topics
from services.common.runtime import logs
from services.common.runtime.ending import run_service
from services.common.streaming.worker import Processor, Rejected, Worker, quieten

_CONVERSATIONS = 10_000
"""Turns that the next one is mostly hashed from; half a kilobyte each."""


class Aggregator(Worker):
    """Calls and status → episodes."""

    def __init__(self, kafka: KafkaSettings, settings: AggregatorSettings) -> None:
        super().__init__("aggregator", (LLM_CALLS, AGENT_STATUS), kafka, settings)
        self._own = settings
        self._calls = CallReader(kafka, self.codec)
        self._hashes = PromptHashes(_CONVERSATIONS)

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
                written[number],
                since,
            )
            for number in since_ms
        }

    async def whole(self, processor: Processor, event: Event) -> Event:
        """A delta as the call it was made of; the text of a large call is proved to be there.
        Raises Rejected, LogUnavailable.
        """
        if not isinstance(event, LlmCall) or not isinstance(processor, AggregatorPartition):
            return event
        logged = event
        try:
            if event.parent is not None:
                event = await self._restored(event, partial(processor.held, event))
            if claims_of(event):
                await asyncio.to_thread(redeemed, event)
            if logged.parent is not None:
                processor.as_logged(logged)
        except (BrokenDelta, BadClaim) as error:
            raise Rejected(str(error), actions_of(event.mode, [event])) from error
        return event

    async def _restored(self, call: LlmCall, held: Callable[[str], LlmCall | None]) -> LlmCall:
        parent = held(call.parent.call_id) if call.parent is not None else None
        return (
            restore(call, parent, hashes=self._hashes)
            if parent is not None
            else await asyncio.to_thread(self._calls.whole, call, held)
        )

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
