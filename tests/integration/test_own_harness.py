"""examples/own_harness against a real gateway: what it declares is called, rewarded and finished."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from fulgurite.enums import Mode, StatusKind
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import ADMIN, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]
SCRIPT = Path(__file__).parents[2] / "examples" / "own_harness" / "train.py"


async def test_every_rollout_is_called_rewarded_and_finished(
    kafka: LocalKafka, stub: Stub, topic_prefix: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    async with running_gateway(settings, stub.url, tmp_path) as gateway:
        environment = {
            **os.environ,
            "FULGURITE_GATEWAY_URL": gateway.url,
            "FULGURITE_ADMIN_KEY": ADMIN,
            "TASKS": "2",
        }
        harness = await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPT), env=environment, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(harness.communicate(), 120)
        assert (harness.returncode, said.decode().count("is complete")) == (0, 2)
        calls = await gateway.calls()
        groups = {call.group_id for call in calls}
        statuses = [status for group in groups for status in await gateway.statuses(group)]
        rewards = [reward for group in groups for reward in await gateway.rewards(group)]
    rollouts = {call.rollout_id for call in calls}
    assert len(rollouts) == 8
    assert {call.mode for call in calls} == {Mode.train}
    assert {
        status.rollout_id for status in statuses if status.kind is StatusKind.finished
    } == rollouts
    assert {reward.rollout_id for reward in rewards if reward.final} == rollouts
