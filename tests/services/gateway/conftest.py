"""Fixtures of the gateway's tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest_asyncio

from tests.services.gateway.answering import Gateway, running


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncGenerator[Gateway]:
    async with running(tmp_path) as made:
        yield made
