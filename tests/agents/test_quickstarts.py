"""What runs is what was published: the two differ in nothing but where the model is and what it is
called.
"""

from __future__ import annotations

import asyncio
import difflib
import re

import pytest

from tests.agents.environments import environment
from tests.agents.quickstarts import Agent, Quickstart, agents, cut

pytestmark = pytest.mark.agents

ALL = [
    pytest.param(agent, one, id=f"{agent.folder}-{one.name}")
    for agent in agents()
    for one in agent.quickstart
]


A_MODEL = re.compile(
    r"""[\w-]+:policy                                  # where providers are prefixes
    |   openai(\.chat)?\('policy'\)                    # where they are functions,
    |   import\ \{\ openai\ \}\ from\ '@ai-sdk/openai';  # which are imported
    |   model\ =\ OpenAIModel\(model_id="policy"\)     # where they are classes
    |   WebSearchTool,\ OpenAIModel
    """,
    re.VERBOSE,
)
"""Every form in which a quick-start may be told another model; one more is one more line here."""


@pytest.mark.parametrize(("agent", "quickstart"), ALL)
async def test_only_the_model_is_another(agent: Agent, quickstart: Quickstart) -> None:
    found = cut(quickstart, await asyncio.to_thread(environment, agent.folder))
    lines = list(
        difflib.unified_diff(
            found.original.splitlines(), found.running.splitlines(), lineterm="", n=0
        )
    )[2:]
    gone, come = ([line for line in lines if line.startswith(sign)] for sign in "-+")
    assert len(gone) == len(come) == len(quickstart.changes)
    for said in quickstart.changes.values():
        assert A_MODEL.fullmatch(said)
        assert any(said in line for line in come)


@pytest.mark.parametrize(("agent", "quickstart"), ALL)
def test_its_variables_hold_address_key_and_model(agent: Agent, quickstart: Quickstart) -> None:
    assert set(quickstart.environment.values()) <= {
        "$OPENAI_BASE_URL",
        "$OPENAI_API_KEY",
        quickstart.alias,
    }
