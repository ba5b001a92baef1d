"""Two judges share a consumer group, one leaves or dies while it asks: the other judges what was
left, no group has a verdict too many.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from confluent_kafka import TopicPartition

from fulgurite.episodes.stitching import stitch
from fulgurite.events import AgentReward, AgentStatus, Episode
from fulgurite.topics import AGENT_REWARDS, EPISODES
from services.common.kafka.consumer import make_consumer, watermarks
from services.local_stack.kafka_local import LocalKafka
from tests.integration.test_processors import Deployment, wait_until
from tests.synthetic import group_id, make_call, make_declared, make_status

pytestmark = [pytest.mark.engine]

BEFORE, AFTER = range(4), range(4, 20)
"""Groups that are judged by one alone, and those that two have begun when one of them ends."""


class Model:
    """A server of chat completions: the first trajectory is worth 0.25, the second 1, told once the
    gate is open.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked_by: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked_by.append(request.headers["authorization"].removeprefix("Bearer "))
        await self.gate.wait()
        scores = [
            {"trajectory_id": name, "explanation": "so", "score": score}
            for name, score in (("1", 0.25), ("2", 1.0))
        ]
        message = {"role": "assistant", "content": json.dumps({"scores": scores})}
        return web.json_response(
            {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        )


@asynccontextmanager
async def running_model() -> AsyncGenerator[Model]:
    model = Model()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", model.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    model.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield model
    finally:
        await runner.cleanup()


class Judges(Deployment):
    """A log with episodes, and judges of it."""

    def judge(self, name: str, model: Model) -> None:
        environment = {
            "FULGURITE_JUDGE_BASE_URL": model.url,
            "FULGURITE_JUDGE_API_KEY": name,
            "FULGURITE_JUDGE_RETRIES": "0",
            # The least that a broker allows.
            "FULGURITE_JUDGE_SESSION_TIMEOUT_S": "6",
        }
        self._await_ready(
            name, self._spawn(name, "services.judge.main", ("--model", "big"), environment)
        )

    def act(self, groups: range) -> None:
        """Two agents of each group are done."""
        at = int(time.time() * 1000)
        for group in groups:
            declared = make_declared(group, at=at, deadline=at + 600_000)
            futures = [
                self.producer.submit(
                    EPISODES, group_id(group), _episode(declared, group, index, at)
                )
                for index in (0, 1)
            ]
            for future in futures:
                future.result(30)

    def verdicts(self) -> list[AgentReward]:
        return [event for event in self.read(AGENT_REWARDS) if isinstance(event, AgentReward)]

    def judged(self, groups: range) -> bool:
        """Whether each has both its verdicts."""
        return len({reward.event_id for reward in self.verdicts()}) >= 2 * len(groups)

    def left(self) -> int:
        """Episodes that the judges have not committed."""
        consumer = make_consumer(self.kafka, f"{self.kafka.topic_prefix}judge.all.judge")
        places = [
            TopicPartition(self.kafka.topic(EPISODES), partition)
            for partition in range(EPISODES.partitions)
        ]
        committed = consumer.committed(places, timeout=10)
        left = sum(watermarks(consumer, place)[1] - max(0, place.offset) for place in committed)
        consumer.close()
        return left


def _episode(declared: AgentStatus, group: int, index: int, at: int) -> Episode:
    call = make_call(group, index, at=at, messages=[{"role": "user", "content": "1+1"}])
    made = stitch([declared, call, make_status(group, index, at=at + 10)])
    assert made is not None
    return made


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_a_judge_that_ends_midway_leaves_its_groups_to_the_other(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path, how: signal.Signals
) -> None:
    judges = await asyncio.to_thread(Judges, kafka.bootstrap_servers, topic_prefix, tmp_path)
    try:
        async with running_model() as model:
            await asyncio.to_thread(judges.judge, "one", model)
            await asyncio.to_thread(judges.act, BEFORE)
            await asyncio.to_thread(
                wait_until, lambda: judges.judged(BEFORE), "the first groups are judged"
            )

            model.gate.clear()
            await asyncio.to_thread(judges.judge, "two", model)
            await asyncio.to_thread(judges.act, AFTER)
            await asyncio.to_thread(
                wait_until, lambda: {*model.asked_by} == {"one", "two"}, "both judges ask"
            )
            judges.processes["one"].send_signal(how)
            code = await asyncio.to_thread(judges.processes.pop("one").wait, 30)
            model.gate.set()
            await asyncio.to_thread(
                wait_until, lambda: not judges.left(), "everything is committed"
            )
            assert await asyncio.to_thread(judges.stop) == {"two": 0}
        assert code == (0 if how is signal.SIGTERM else -how)
    finally:
        await asyncio.to_thread(judges.close)

    rewards = judges.verdicts()
    assert {reward.error for reward in rewards} == {None}
    verdicts = {
        reward.event_id: (reward.group_id, reward.rollout_id.split("_")[2], reward.value)
        for reward in rewards
    }
    expected = {
        (group_id(group), *verdict)
        for group in (*BEFORE, *AFTER)
        for verdict in (("0", 0.25), ("1", 1.0))
    }
    assert len(verdicts) == len(expected)
    assert set(verdicts.values()) == expected
