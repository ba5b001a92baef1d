"""A judge as a real process asks through a real gateway: good, broken and refused answers.

What it asked trains nothing, and a replay keeps its verdicts.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from typer.testing import CliRunner

from fulgurite.enums import Mode
from fulgurite.events import AgentReward, Episode, Trajectory
from fulgurite.topics import AGENT_REWARDS, EPISODES, TRAJECTORIES
from services.cli.main import app
from services.common.kafka.consumer import read_all
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import PLAIN, Gateway, running_gateway
from tests.integration.stub_upstream import Stub
from tests.integration.test_processors import Deployment, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

QUICK = {"FULGURITE_AGGREGATOR_SILENCE_S": "2", "FULGURITE_REWARDER_LIVE_WAIT_S": "1"}


class Judged(Deployment):
    """Processors and a judge."""

    def start_judge(self, gateway: Gateway) -> None:
        environment = {
            "FULGURITE_JUDGE_BASE_URL": gateway.url + "/v1",
            "FULGURITE_JUDGE_API_KEY": PLAIN,
            "FULGURITE_JUDGE_RETRIES": "1",
            "FULGURITE_JUDGE_RETRY_WAIT_S": "0",
        }
        self._await_ready(
            "judge",
            self._spawn(
                "judge",
                "services.judge.main",
                ("--model", "policy", "--run-id", "mine"),
                environment,
            ),
        )

    def rewards(self, group_id: str) -> list[AgentReward]:
        """What the log says of a group, in the order of its rollouts."""
        found = [
            event
            for event in self.read(AGENT_REWARDS)
            if isinstance(event, AgentReward) and event.group_id == group_id
        ]
        return sorted(found, key=lambda reward: int(reward.rollout_id.split("_")[2]))


@pytest_asyncio.fixture(loop_scope="module")
async def deployment(
    kafka: LocalKafka, topic_prefix: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Judged]:
    made = await asyncio.to_thread(
        Judged, kafka.bootstrap_servers, topic_prefix, tmp_path_factory.mktemp("judge")
    )
    yield made
    await asyncio.to_thread(made.close)


async def acted(gateway: Gateway, stub: Stub, judge_says: dict[str, Any]) -> str:
    """A group of two whose agents answered and are done; from then on the model speaks as a judge."""
    stub.reset()
    group = await gateway.declare(n=2, task={"q": "1+1"}, expected_rewards=["judge"], run_id="mine")
    asked = {
        "model": "policy",
        "messages": [{"role": "system", "content": "add"}, {"role": "user", "content": "1+1"}],
    }
    for rollout in group["rollouts"]:
        status, reply = await gateway.json("/v1/chat/completions", asked, rollout["api_key"])
        assert status == 200, reply
    stub.reset(**judge_says)
    for rollout in group["rollouts"]:
        await gateway.json(
            f"/v1/rollouts/{rollout['rollout_id']}/status", {"kind": "finished"}, rollout["api_key"]
        )
    return group["group_id"]


def says(*values: float) -> dict[str, Any]:
    scores = [
        {"trajectory_id": str(number), "explanation": f"it is {value}", "score": value}
        for number, value in enumerate(values, 1)
    ]
    return {"words": [json.dumps({"scores": scores})]}


async def verdicts(deployment: Judged, group_id: str) -> list[AgentReward]:
    await asyncio.to_thread(
        wait_until, lambda: len(deployment.rewards(group_id)) >= 2, "the group is judged"
    )
    return deployment.rewards(group_id)


async def test_groups_are_ranked_through_the_gateway_and_replay_keeps_the_verdicts(
    deployment: Judged, kafka: LocalKafka, stub: Stub
) -> None:
    async with running_gateway(
        deployment.kafka, stub.url, deployment.folder, make_topics=False
    ) as gateway:
        await asyncio.to_thread(deployment.start, "aggregator", "rewarder", **QUICK)
        await asyncio.to_thread(deployment.start_judge, gateway)

        good = await acted(gateway, stub, says(0.25, 1.0))
        assert [(reward.value, reward.error) for reward in await verdicts(deployment, good)] == [
            (0.25, None),
            (1.0, None),
        ]
        [question] = stub.requests
        assert [message["role"] for message in question["messages"]] == ["system", "user"]
        assert question["messages"][1]["content"].count("1+1") == 1
        assert (
            question["response_format"]["json_schema"]["schema"]["properties"]["scores"]["minItems"]
            == 2
        )
        explained = deployment.rewards(good)[1].metadata or ""
        assert json.loads(explained) == {"explanation": "it is 1.0"}

        broken = await acted(gateway, stub, {"words": ["I would rather not."]})
        errors = {reward.error for reward in await verdicts(deployment, broken)}
        assert [error and error.split(":")[0] for error in errors] == ["BadVerdict"]
        assert len(stub.requests) == 2

        refused = await acted(gateway, stub, {"status": 400, "error": "no such format"})
        errors = {reward.error for reward in await verdicts(deployment, refused)}
        assert [error and error.split(":")[0] for error in errors] == ["JudgeRefused"]
        assert len(stub.requests) == 1

        # A judge that starts again finds all of it done.
        stub.reset(**says(0.9, 0.9))
        deployment.processes["judge"].terminate()
        assert await asyncio.to_thread(deployment.processes["judge"].wait, 30) == 0
        await asyncio.to_thread(deployment.start_judge, gateway)
        last = await acted(gateway, stub, says(0.5, 0.75))
        assert [reward.value for reward in await verdicts(deployment, last)] == [0.5, 0.75]
        assert len(stub.requests) == 1
        assert len(deployment.read(AGENT_REWARDS)) == 8

        # What it asked is undeclared traffic: no group's, and never of mode train.
        calls = await gateway.calls()
        declared = {good, broken, refused, last}
        own = [call for call in calls if call.group_id not in declared]
        assert {(call.mode, call.agent) for call in own} == {(Mode.live, "judge")}
        assert len(own) == 5
        assert len(calls) == 5 + 8

    await asyncio.to_thread(check_training, deployment, good, last)


def check_training(deployment: Judged, good: str, last: str) -> None:
    """Rows of judged groups only, with their scores; a replay with unchanged rules writes the same."""
    wait_until(lambda: len(paid(deployment, TRAJECTORIES.name)) == 4, "the judged groups are rows")
    wait_until(
        lambda: sum(isinstance(event, Episode) for event in deployment.read(EPISODES)) >= 12,
        "the judge's calls are episodes",
    )
    assert deployment.stop() == {"aggregator": 0, "rewarder": 0, "judge": 0}
    live = paid(deployment, TRAJECTORIES.name)
    assert set(live.values()) == {0.25, 0.5, 0.75, 1.0}
    assert {group for group, _ in live} == {good, last}
    done = CliRunner().invoke(
        app,
        ["replay", "--into", "trajectories.v2", "--from-beginning", "--json"],
        env=deployment.environment,
    )
    assert done.exit_code == 0, done.output
    assert paid(deployment, "trajectories.v2") == live


def paid(deployment: Judged, topic: str) -> dict[tuple[str, str], float | None]:
    """Rewards of rows, by group and rollout."""
    named = msgspec.structs.replace(TRAJECTORIES, name=topic)
    events = [record.event for record in read_all(deployment.kafka, named, deployment.codec)]
    return {
        (row.group_id, row.rollout_id): row.episode_reward
        for row in events
        if isinstance(row, Trajectory)
    }
