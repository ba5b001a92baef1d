"""The rewarder's Faust app: `episodes` and `agent.rewards` become `trajectories`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeGuard

from fulgurite.events import DeadLetter, Event, GroupClosed, LedgerEntry, Tombstone, Trajectory
from fulgurite.groups.group_revisions import SOURCE, ClosingRecord
from fulgurite.topics import AGENT_REWARDS, DEAD_LETTERS, EPISODES, TRAINING_LEDGER, TRAJECTORIES
from services.common.kafka.consumer import read_all
from services.common.kafka.settings import KafkaSettings
from services.common.streaming.faust_app import raw_topic
from services.common.streaming.worker import Worker
from services.rewarder.partition import STAGE, RewarderPartition
from services.rewarder.reload import reload_groups
from services.rewarder.settings import RewarderSettings


class Rewarder(Worker):
    """Episodes and rewards → trajectories."""

    def __init__(self, kafka: KafkaSettings, settings: RewarderSettings) -> None:
        super().__init__(STAGE, (EPISODES, AGENT_REWARDS), kafka, settings)
        self._own = settings

    def add_agents(self, app: Any) -> None:
        """One agent for each input topic."""

        @app.agent(raw_topic(app, self.kafka, EPISODES), name="rewarder.episodes")
        async def consume_episodes(stream: Any) -> None:
            await self.consume(EPISODES, stream)

        @app.agent(raw_topic(app, self.kafka, AGENT_REWARDS), name="rewarder.agent.rewards")
        async def consume_rewards(stream: Any) -> None:
            await self.consume(AGENT_REWARDS, stream)

    async def restore(self, since_ms: Mapping[int, int]) -> Mapping[int, RewarderPartition]:
        """Partitions that know which groups have been closed since."""
        since = min(since_ms.values(), default=0)
        written = await asyncio.to_thread(self._written, list(since_ms), since)
        return {
            number: RewarderPartition(
                number,
                self.log,
                self._own,
                partial(self.position, partition=number),
                partial(reload_groups, self.kafka, self.codec, number),
                written[number],
                since,
            )
            for number in since_ms
        }

    def decode(self, value: bytes) -> Event:
        """Episodes wait packed for their groups: the whole calls of a long conversation repeat it
        over and over.
        """
        return self.codec.decode(value, packed=True)

    def _written(
        self, partitions: list[int], since: int
    ) -> dict[int, list[ClosingRecord | DeadLetter]]:
        written: dict[int, list[ClosingRecord | DeadLetter]] = {number: [] for number in partitions}
        for topic in (TRAJECTORIES, TRAINING_LEDGER, DEAD_LETTERS):
            for record in read_all(
                self.kafka, topic, self.codec, partitions=partitions, since_ms=since
            ):
                event = record.event
                if _is_written_by_us(event):
                    written[record.partition].append(event)
        return written


def _is_written_by_us(event: Event | None) -> TypeGuard[ClosingRecord | DeadLetter]:
    match event:
        case Trajectory() | Tombstone() | GroupClosed():
            return True
        case LedgerEntry():
            return event.source == SOURCE
        case DeadLetter():
            return event.stage == STAGE
        case _:
            return False
