"""The quick-starts of the `openai` package, as published, through the gateway to a real vLLM. All
frameworks': `tests/agents`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fulgurite.enums import CallOutcome, Identity
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.vllm_local import LocalVllm
from tests.agents.environments import environment
from tests.agents.processes import run_quickstart
from tests.agents.quickstarts import agents, cut
from tests.agents.recorded import roles
from tests.integration.gateway_process import kafka_settings, running_gateway

pytestmark = pytest.mark.engine


async def test_they_run_byte_for_byte(
    kafka: LocalKafka, vllm_tiny: LocalVllm, topic_prefix: str, tmp_path: Path
) -> None:
    [agent] = [agent for agent in agents() if agent.folder == "openai"]
    place = environment("openai")
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    aliases = {one.alias for one in agent.quickstart}
    async with running_gateway(
        settings,
        vllm_tiny.base_url,
        tmp_path,
        FULGURITE_ALIASES=",".join(f"{alias}=policy" for alias in aliases),
    ) as gateway:
        group = await gateway.declare(n=len(agent.quickstart), alias=agent.quickstart[0].alias)
        for quickstart, rollout in zip(agent.quickstart, group["rollouts"], strict=True):
            found = cut(quickstart, place)
            assert found.running == found.original
            done = await run_quickstart(quickstart, found, place, rollout, tmp_path)
            assert done.code == 0, done.said[-2000:]
            call = await gateway.call(rollout["rollout_id"])
            assert (call.outcome, call.identity, call.agent) == (
                CallOutcome.success,
                Identity.scoped_key,
                quickstart.alias,
            )
            assert (call.api, call.stream) == (quickstart.api, quickstart.stream)
            assert call.prompt_token_ids
            assert call.choices[0].token_ids
            assert roles(call).endswith("user")
