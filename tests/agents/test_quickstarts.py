"""What runs is what was published: the two differ in nothing but where the model is and what it is called."""

from __future__ import annotations

import asyncio
import difflib

import pytest

from tests.agents.environments import environment
from tests.agents.quickstarts import Agent, Quickstart, agents, cut

pytestmark = pytest.mark.agents

ALL = [pytest.param(agent, one, id=f"{agent.folder}-{one.name}") for agent in agents() for one in agent.quickstart]


@pytest.mark.parametrize(("agent", "quickstart"), ALL)
async def test_only_the_model_is_another(agent: Agent, quickstart: Quickstart) -> None:
    found = cut(quickstart, await asyncio.to_thread(environment, agent.folder))
    lines = list(difflib.unified_diff(found.original.splitlines(), found.running.splitlines(), lineterm="", n=0))[2:]
    gone = [line[1:] for line in lines if line.startswith("-")]
    come = [line[1:] for line in lines if line.startswith("+")]
    assert len(gone) == len(come) == len(quickstart.changes)
    assert not [line for line in come if not any(word in line for word in ("policy", "import"))]
    assert len(gone) <= 2


@pytest.mark.parametrize(("agent", "quickstart"), ALL)
def test_its_variables_hold_address_key_and_model(agent: Agent, quickstart: Quickstart) -> None:
    assert set(quickstart.environment.values()) <= {"$OPENAI_BASE_URL", "$OPENAI_API_KEY", quickstart.alias}
