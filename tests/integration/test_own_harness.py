"""examples/own_harness against a real gateway: what it declares is called, rewarded and finished,
until a learner publishes a version.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest

from fulgurite.avro.codec import Codec
from fulgurite.enums import Mode, StatusKind, UpdateKind
from fulgurite.events import PolicyUpdate
from fulgurite.topics import POLICY_UPDATES
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import ADMIN, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]
SCRIPT = Path(__file__).parents[2] / "examples" / "own_harness" / "train.py"


async def publish_version(kafka: KafkaSettings) -> None:
    """Publish `policy@1.1`, in place of a learner."""
    claim = PolicyUpdate(
        event_id="c", event_time=1, policy="policy", kind=UpdateKind.claim, epoch=1, step=0,
        learner_id="l", trained_actions=0,
    )  # fmt: skip
    update = msgspec.structs.replace(
        claim, event_id="u", kind=UpdateKind.update, step=1, version="policy@1.1"
    )
    producer = EventProducer(kafka, Codec(), "test")
    for event in (claim, update):
        await producer.publish(POLICY_UPDATES, "policy", event)
    producer.close()


async def test_every_rollout_is_called_rewarded_and_finished_until_there_is_a_version(
    kafka: LocalKafka, stub: Stub, topic_prefix: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    async with running_gateway(settings, stub.url, tmp_path) as gateway:
        environment = {
            **os.environ,
            "FULGURITE_GATEWAY_URL": gateway.url,
            "FULGURITE_ADMIN_KEY": ADMIN,
        }
        harness = await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPT), env=environment, stdout=asyncio.subprocess.PIPE
        )
        assert harness.stdout is not None
        for _ in range(2):
            line = await asyncio.wait_for(harness.stdout.readline(), 120)
            assert line.decode() == "a group is complete\n"
        await publish_version(settings)
        said, _ = await asyncio.wait_for(harness.communicate(), 120)
        assert harness.returncode == 0
        assert said.decode().splitlines()[-1] == "new version: policy@1.1"
        calls = await gateway.calls()
        groups = {call.group_id for call in calls}
        statuses = [status for group in groups for status in await gateway.statuses(group)]
        rewards = [reward for group in groups for reward in await gateway.rewards(group)]
        shown = [(await gateway.get(f"/v1/rollouts/{call.rollout_id}", ADMIN))[1] for call in calls]
    rollouts = {call.rollout_id for call in calls}
    assert len(rollouts) == 4 * len(groups) >= 8
    assert {call.mode for call in calls} == {Mode.train}
    assert {
        status.rollout_id for status in statuses if status.kind is StatusKind.finished
    } == rollouts
    assert {reward.rollout_id for reward in rewards if reward.final} == rollouts
    assert [(one["state"], len(one["calls"]), len(one["rewards"])) for one in shown] == [
        ("finished", 1, 1)
    ] * len(calls)
