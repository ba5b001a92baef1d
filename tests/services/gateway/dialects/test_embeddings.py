"""Embeddings are recorded, without vectors, and nothing of them is an action."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.gateway.dialects.embeddings import Embeddings
from services.gateway.errors import InvalidRequest
from tests.services.gateway.dialects.samples import (
    CALL,
    CORE,
    DEFAULTS,
    OTHER,
    VLLM,
    ask,
    passed,
    sent,
)

DIALECT = Embeddings()
REPLY: dict[str, Any] = {
    "id": "embd-up",
    "object": "list",
    "model": "served",
    "data": [{"index": 0, "embedding": [0.25, -1.5]}],
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}


def test_without_an_input_it_is_no_request() -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask(DIALECT, input=None)
    assert caught.value.param == "input"


def test_the_body_passes() -> None:
    asked = ask(DIALECT, input=["a"], dimensions=2)
    assert sent(DIALECT, asked, OTHER) == {"model": "gpt-5", "input": ["a"], "dimensions": 2}
    assert (DIALECT.upstream_headers(asked, VLLM), DIALECT.sampling(asked, DEFAULTS)) == (
        {},
        DEFAULTS,
    )


def test_the_agent_gets_the_vectors_and_the_log_does_not() -> None:
    capture = DIALECT.capture(ask(DIALECT, input="a"), VLLM, CALL)
    assert passed(capture, dict(REPLY)) == REPLY | {"id": f"embd-{CORE}", "model": "policy"}
    assert (capture.recorded_choices(), capture.failure(), capture.prompt_tokens) == ((), None, 3)
    head = msgspec.json.decode(capture.response() or "")
    assert head == {
        "id": f"embd-{CORE}",
        "object": "list",
        "model": "policy",
        "usage": REPLY["usage"],
    }
    assert DIALECT.capture(ask(DIALECT, input="a"), VLLM, CALL).parse_reply({"choices": []}) is None
