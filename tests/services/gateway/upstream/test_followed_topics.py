"""Topics are read before a gateway serves, but without Kafka it does not wait for them for long."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import MagicMock

import pytest

from fulgurite.avro.codec import Codec
from services.gateway.identity.store import MemoryStore
from services.gateway.upstream import followed_topics
from services.gateway.upstream.policies import PolicyTail
from services.gateway.upstream.prompts import Prompts
from tests.services.gateway.answering import NOWHERE


@pytest.fixture
def tail(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tail that is made next; its topics are not read yet."""
    made = MagicMock()
    made.return_value.caught_up = asyncio.Event()
    monkeypatch.setattr(followed_topics, "TopicTail", made)
    return made.return_value


@pytest.mark.parametrize(
    "make",
    [
        lambda: PolicyTail(NOWHERE, Codec()),
        lambda: Prompts(NOWHERE, Codec(), MemoryStore()),
    ],
    ids=["policies", "prompts"],
)
class TestEachOfThem:
    async def test_a_start_does_not_wait_for_kafka_for_long(
        self, tail: Any, monkeypatch: pytest.MonkeyPatch, make: Any
    ) -> None:
        monkeypatch.setattr(followed_topics, "_READ_S", 0.01)
        made = make()
        await made.start()
        assert not made.caught_up

    async def test_a_start_waits_until_the_topics_are_read(self, tail: Any, make: Any) -> None:
        made = make()
        starting = asyncio.ensure_future(made.start())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not starting.done()
        tail.caught_up.set()
        await starting
        assert made.caught_up
