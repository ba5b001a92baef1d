"""What an alias caps, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from fulgurite.untrusted_json import encoded
from services.gateway.dialects.answer_limits import AnswerLimits
from services.gateway.dialects.chat import Chat
from services.gateway.dialects.completions import Completions
from services.gateway.dialects.dialect import Dialect
from services.gateway.dialects.messages import Messages
from services.gateway.dialects.responses import Responses
from services.gateway.settings import SamplingDefaults

LIMITS = AnswerLimits({"policy": 512})
DIALECTS: dict[str, tuple[Dialect, dict[str, Any]]] = {
    "chat": (Chat(), {"messages": []}),
    "completions": (Completions(), {"prompt": "a"}),
    "responses": (Responses(), {"input": "a"}),
    "messages": (Messages(), {"messages": []}),
}


@pytest.mark.parametrize(
    ("dialect", "field"),
    [
        ("chat", "max_tokens"),
        ("chat", "max_completion_tokens"),
        ("completions", "max_tokens"),
        ("responses", "max_output_tokens"),
        ("messages", "max_tokens"),
    ],
)
def test_more_is_capped_in_every_api(dialect: str, field: str) -> None:
    api, fields = DIALECTS[dialect]
    for alias, asked, used in (
        ("policy", 4096, 512),
        ("policy", "4096", 512),
        ("policy", 512, 512),
        ("policy", 16, 16),
        ("other", 4096, 4096),
    ):
        body: dict[str, Any] = {"model": alias, **fields, field: asked}
        request = api.parse(encoded(body))
        sampling = api.sampling(request, SamplingDefaults().sampling())
        limited = LIMITS.apply(request, sampling)
        assert int(limited.request.body[field]) == used
        assert limited.sampling.max_tokens == used
        assert limited.header == ("max_tokens=512" if str(asked) == "4096" != str(used) else None)


def test_a_call_without_a_limit_is_left_alone() -> None:
    request = Chat().parse(encoded({"model": "policy", "messages": []}))
    sampling = Chat().sampling(request, SamplingDefaults().sampling())
    assert LIMITS.apply(request, sampling) == (request, sampling, None)
