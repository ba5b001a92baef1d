"""The reward worker's loop over a log in memory: what becomes of an episode that cannot be judged."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

import pytest
from confluent_kafka import Message

from fulgurite.enums import Mode, TrainingUse
from fulgurite.episodes.stitching import stitch
from fulgurite.events import AgentReward, DeadLetter, Episode
from services.common.kafka.errors import EventTooLarge
from services.common.kafka.settings import KafkaSettings
from services.rewards import worker as module
from services.rewards.plugins import RewardPlugin, Scored
from services.rewards.sandbox import Limits, Sandbox
from services.rewards.settings import RewardWorkerSettings
from services.rewards.worker import RewardWorker
from tests.services.gateway.memory_producer import MemoryProducer
from tests.services.memory_episodes import MemoryConsumer, MemoryEpisodes
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status


class Consumer(MemoryConsumer):
    """One that is asked for more than one message at once."""

    def subscribe(self, topics: list[str], **listeners: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().subscribe(topics, on_revoke=partial(_given, None), **listeners)

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Message]:
        return []


class NoSandbox(Sandbox):
    """Runs nothing."""

    def __init__(self) -> None:
        """Without processes."""

    def close(self) -> None:
        """Nothing to end."""


class Plugin(RewardPlugin):
    """Breaks over every second group, as no plug-in should."""

    def __init__(self, error: Exception) -> None:
        self.name, self.source, self.is_fallback = "reward", "test", False
        self._error = error
        self.asked: list[str] = []

    def sandbox(self, limits: Limits) -> Sandbox:
        return NoSandbox()

    async def score(self, sandbox: Sandbox, episode: Episode) -> Scored:
        self.asked.append(episode.group_id)
        if episode.group_id == group_id(1):
            raise self._error
        return Scored([make_reward()])


def _given(what: object, *_: object) -> object:
    return what


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("too deep"),
        EventTooLarge("9 MB"),
        UnicodeEncodeError("utf-8", "\ud83c", 0, 1, "no"),
    ],
)
async def test_an_episode_over_which_judging_breaks_is_buried_and_the_next_is_judged(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    log, producer = MemoryEpisodes(), MemoryProducer()
    log.append(
        0,
        *(
            cast(Episode, stitch([make_declared(group, 1), make_call(group), make_status(group)]))
            for group in (1, 2)
        ),
    )
    consumer = Consumer(log)
    consumer.give(0)
    monkeypatch.setattr(module, "EventProducer", partial(_given, producer))
    monkeypatch.setattr(module, "episodes_consumer", partial(_given, consumer))
    plugin = Plugin(error)
    worker = RewardWorker(plugin, None, KafkaSettings(), RewardWorkerSettings())
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(60):
        while log.committed.get(0) != 2:  # noqa: ASYNC110 - another thread gets there
            await asyncio.sleep(0.005)
    worker.stop()
    await running
    # Tried once more first.
    assert plugin.asked == [group_id(1), group_id(1), group_id(2)]
    events = [event for _, event in producer.log]
    (letter,) = (event for event in events if isinstance(event, DeadLetter))
    assert (letter.stage, letter.error_type, letter.offset) == (
        "reward-worker",
        type(error).__name__,
        0,
    )
    assert sum(isinstance(event, AgentReward) for event in events) == 1


async def test_a_worker_for_live_traffic_scores_what_is_opted_in_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, producer = MemoryEpisodes(), MemoryProducer()
    uses = {3: TrainingUse.live, 4: TrainingUse.quota, 5: TrainingUse.by_mode}
    live = [
        stitch([make_call(n, mode=Mode.live, use=use), make_status(n, mode=Mode.live)])
        for n, use in uses.items()
    ]
    declared = stitch([make_declared(2, 1), make_call(2), make_status(2)])
    log.append(0, *(cast(Episode, one) for one in (declared, *live)))
    consumer = Consumer(log)
    consumer.give(0)
    monkeypatch.setattr(module, "EventProducer", partial(_given, producer))
    monkeypatch.setattr(module, "episodes_consumer", partial(_given, consumer))
    plugin = Plugin(ValueError())
    plugin.is_fallback = True
    worker = RewardWorker(plugin, None, KafkaSettings(), RewardWorkerSettings())
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(60):
        while log.committed.get(0) != 4:  # noqa: ASYNC110 - another thread gets there
            await asyncio.sleep(0.005)
    worker.stop()
    await running
    assert plugin.asked == [group_id(3)]
