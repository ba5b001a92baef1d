"""One stack for all agents of a session."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from tests.agents.quickstarts import agents, aliases
from tests.agents.stack import AgentStack, running_stack


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[AgentStack]:
    """With every model name that the agents ask for as an alias of its one policy."""
    async with running_stack(tmp_path_factory.mktemp("agents"), aliases(agents())) as running:
        yield running
