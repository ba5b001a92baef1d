"""A search in a log that cannot be reached. What it finds in one that can be:
`tests/integration/test_gateway_responses.py`.
"""

from __future__ import annotations

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.ids import parse_completion
from services.common.kafka.delivery import Delivery
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.gateway.recording import log_search as module
from services.gateway.recording.call_search import CallSearch
from services.local_stack.ports import free_port
from tests.synthetic import make_call


@pytest.mark.parametrize("place", [None, Delivery(3, 14)])
def test_a_broker_that_is_away_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, place: Delivery | None
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    search = CallSearch(KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}"), Codec())
    with pytest.raises(LogUnavailable, match=r"llm\.calls"):
        search.find(parse_completion(make_call().call_id), place)
