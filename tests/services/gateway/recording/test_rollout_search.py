"""A search for a rollout in a log that cannot be reached. What it finds in one that can be:
`tests/integration/test_gateway_rest.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.ids import parse_completion
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.gateway.recording import log_search as module
from services.gateway.recording.rollout_search import RolloutSearch
from services.local_stack.ports import free_port
from tests.synthetic import make_call

REF = parse_completion(make_call().call_id)
QUESTIONS: list[tuple[Callable[[RolloutSearch], object], tuple[str, ...]]] = [
    (lambda search: search.read(REF.rollout), ("status", "rewards", "calls")),
    (lambda search: search.choices(REF), ("calls",)),
    (lambda search: search.has_rollout(REF.rollout), ("status", "calls")),
]


@pytest.mark.parametrize(("ask", "topics"), QUESTIONS)
def test_a_log_that_is_away_is_named_by_its_topics_without_its_address(
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[RolloutSearch], object],
    topics: tuple[str, ...],
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    port = free_port()
    search = RolloutSearch(KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}"), Codec())
    with pytest.raises(LogUnavailable) as raised:
        ask(search)
    said = str(raised.value)
    assert [topic for topic in ("status", "rewards", "calls") if f".{topic}" in said] == [*topics]
    assert str(port) not in said
