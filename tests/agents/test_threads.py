"""One module-level client, several conversations at once: told apart by their messages alone, or
one episode of several trajectories.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fulgurite.enums import Identity
from fulgurite.events import LlmCall
from tests.agents.environments import FOLDER, environment
from tests.agents.processes import Done, run, variables
from tests.agents.quickstarts import Speech
from tests.agents.recorded import roles
from tests.agents.stack import AgentStack
from tests.integration.gateway_process import PLAIN

pytestmark = [pytest.mark.agents, pytest.mark.asyncio(loop_scope="session")]

QUESTIONS = ["What is amber?", "What is basalt?", "What is chalk?", "What is diorite?"]
SCRIPT = [
    Speech([f"look_up({question[8:-1]})", f"It is {question[8:-1]}.", "A stone."], question)
    for question in QUESTIONS
]
TURNS = ["user", "user call tool", "user call tool assistant user"]


async def run_threads(stack: AgentStack, rollout: dict[str, Any], folder: Path) -> Done:
    place = await asyncio.to_thread(environment, "langgraph")
    stack.dictate(SCRIPT)
    done = await run(
        [*place.command(FOLDER / "langgraph" / "threads.py"), *QUESTIONS],
        variables(rollout, folder),
        folder,
    )
    assert done.code == 0, done.said[-4000:]
    return done


def question(call: LlmCall) -> str:
    return str(json.loads(call.request or "{}")["messages"][0]["content"])


async def test_conversations_of_one_plain_key_are_told_apart(
    stack: AgentStack, tmp_path: Path
) -> None:
    known = {call.call_id for call in await stack.gateway.calls()}
    done = await run_threads(
        stack, {"base_url": stack.gateway.url + "/v1", "api_key": PLAIN}, tmp_path
    )
    assert done.said.splitlines() == ["A stone."] * len(QUESTIONS)
    calls = sorted(
        (call for call in await stack.gateway.calls() if call.call_id not in known),
        key=lambda call: call.started_at,
    )
    assert len(calls) == 3 * len(QUESTIONS)
    for asked in QUESTIONS:
        first, *later = mine = [call for call in calls if question(call) == asked]
        assert [roles(call) for call in mine] == TURNS
        assert {call.rollout_id for call in calls if call.rollout_id == first.rollout_id} == {
            call.rollout_id for call in mine
        }
        assert len([call for call in calls if call.rollout_id == first.rollout_id]) == len(TURNS)
        assert {call.identity for call in later} == {Identity.inferred}


async def test_under_a_rollouts_key_they_are_one_episode_of_several_trajectories(
    stack: AgentStack, tmp_path: Path
) -> None:
    rollout = await stack.declare("policy")
    await run_threads(stack, rollout, tmp_path)
    await stack.finish(rollout)
    [episode] = await stack.episodes(rollout["rollout_id"])
    assert len(episode.calls) == 3 * len(QUESTIONS)
    assert {call.identity for call in episode.calls} == {Identity.scoped_key}
    assert len(await stack.rows(rollout["rollout_id"])) == len(QUESTIONS)
