"""Frameworks' published quick-starts, each with nothing but an address and a key, through the
gateway to a real vLLM.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fulgurite.enums import CallOutcome, EpisodeOutcome, Identity, Mode
from fulgurite.events import Episode, LlmCall, Trajectory
from fulgurite.ids import action_id
from fulgurite.tokens import token_count
from services.cli.ledger import read_books
from tests.agents.environments import Environment, environment
from tests.agents.processes import run_quickstart
from tests.agents.quickstarts import Agent, Quickstart, agents, cut
from tests.agents.recorded import roles
from tests.agents.stack import AgentStack

pytestmark = [pytest.mark.agents, pytest.mark.asyncio(loop_scope="session")]

ALL = [(agent, quickstart) for agent in agents() for quickstart in agent.quickstart]
FREE = [pytest.param(agent, one, id=f"{agent.folder}-{one.name}") for agent, one in ALL if one.free]
DICTATED = [
    pytest.param(agent, one, id=f"{agent.folder}-{one.name}") for agent, one in ALL if one.dictated
]


async def run_agent(
    stack: AgentStack, place: Environment, quickstart: Quickstart, folder: Path
) -> tuple[Episode, str]:
    """The agent runs and ends well; what the aggregator makes of it, and what it printed."""
    rollout = await stack.declare(quickstart.alias)
    done = await run_quickstart(quickstart, cut(quickstart, place), place, rollout, folder)
    assert done.code == 0, done.said[-4000:]
    await stack.finish(rollout)
    [episode] = await stack.episodes(rollout["rollout_id"])
    assert sorted(call.call_id for call in episode.calls) == sorted(
        c.call_id for c in await stack.gateway.calls(rollout["rollout_id"])
    )
    assert episode.outcome is EpisodeOutcome.finished
    for call in answered(episode):
        check_call(call, quickstart)
    assert len(episode.calls) - len(answered(episode)) == quickstart.refused
    return episode, done.said


def answered(episode: Episode) -> list[LlmCall]:
    """Its calls without those that were refused."""
    return [call for call in episode.calls if call.outcome is not CallOutcome.refused]


def check_call(call: LlmCall, quickstart: Quickstart) -> None:
    """Recorded as what it is, with the engine's own tokens."""
    assert (call.outcome, call.status_code) == (CallOutcome.success, 200), call.error
    assert (call.identity, call.mode, call.attempt) == (Identity.scoped_key, Mode.train, 0)
    assert (call.api, call.alias, call.policy) == (quickstart.api, quickstart.alias, "policy")
    assert call.agent == ("" if quickstart.alias == "policy" else quickstart.alias)
    assert call.stream is quickstart.stream
    [choice] = call.choices
    assert call.prompt_token_ids
    assert choice.token_ids
    assert choice.logprobs
    assert call.prompt_tokens == token_count(call.prompt_token_ids)
    assert call.completion_tokens == token_count(choice.token_ids) == token_count(choice.logprobs)


@pytest.mark.parametrize(("agent", "quickstart"), DICTATED)
async def test_it_plays_its_part_with_dictated_words(
    stack: AgentStack, agent: Agent, quickstart: Quickstart, tmp_path: Path
) -> None:
    place = await asyncio.to_thread(environment, agent.folder)
    stack.dictate(quickstart.dictated)
    episode, said = await run_agent(stack, place, quickstart, tmp_path)
    assert quickstart.prints in said
    assert [roles(call) for call in answered(episode)] == quickstart.turns
    rows = await stack.rows(episode.rollout_id)
    assert len(rows) == quickstart.rows
    actions = [
        action_id(a.call_id, a.choice)
        for row in rows
        if isinstance(row, Trajectory)
        for a in row.actions
        if a.loss or a.mask
    ]
    assert sorted(actions) == sorted(action_id(call.call_id, 0) for call in answered(episode))


@pytest.mark.parametrize(("agent", "quickstart"), FREE)
async def test_it_ends_well_with_a_small_models_own_words(
    stack: AgentStack, agent: Agent, quickstart: Quickstart, tmp_path: Path
) -> None:
    place = await asyncio.to_thread(environment, agent.folder)
    stack.dictate([])
    episode, _ = await run_agent(stack, place, quickstart, tmp_path)
    # For whoever asks what the model did by itself: `make test-agents ARGS=-rP`.
    print(  # noqa: T201 - shown beside the result
        [
            f"{roles(call)}: {call.completion_tokens} tokens, {call.choices[0].finish_reason}"
            for call in answered(episode)
        ]
    )
    assert episode.calls
    assert await stack.rows(episode.rollout_id)


async def test_the_ledger_accounts_for_every_action_of_every_agent(stack: AgentStack) -> None:
    books = await asyncio.to_thread(read_books, stack.kafka)
    assert books.remainder == 0
    assert books.actions == len(
        [
            call
            for call in await stack.gateway.calls()
            if call.mode is Mode.train and call.outcome is CallOutcome.success
        ]
    )
