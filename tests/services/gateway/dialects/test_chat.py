"""What is sent on: the agent's own fields, and for vLLM what the log needs on top."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.gateway.dialects.chat import Chat, wants
from services.gateway.dialects.choices import Wants
from services.gateway.dialects.dialect import ApiRequest
from services.gateway.errors import InvalidRequest
from services.gateway.settings import SamplingDefaults
from services.gateway.upstream.route import Route
from services.vllm_plugin.middleware import IN_BODY

VLLM = Route("policy", "vllm", "http://x", "vllm", "served", "policy", None)
OTHER = Route("gpt", "gpt", "http://x", "openai", "gpt-5", None, "sk-upstream")
MESSAGES = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:..."}}]}]
DEFAULTS = SamplingDefaults().sampling()


def chat(**fields: Any) -> ApiRequest:
    return Chat().parse(msgspec.json.encode({"model": "policy", "messages": MESSAGES, **fields}))


def sent(request: ApiRequest, route: Route) -> dict[str, Any]:
    return msgspec.json.decode(Chat().upstream_body(request, route, "ours"))


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"{", None),
        (b"", None),
        (b"\xff", None),
        (b'{"model": NaN}', None),
        (b"[" * 100_000, None),
        (b"[]", None),
        (b"{}", "model"),
        (b'{"model": 3}', "model"),
        (b'{"model": "policy"}', "messages"),
        (b'{"model": "policy", "messages": "hi"}', "messages"),
        (b'{"model": "policy", "messages": [], "stream": "yes"}', "stream"),
    ],
)
def test_what_is_no_request_is_refused_with_what_to_do(raw: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Chat().parse(raw)
    assert caught.value.param == param
    assert caught.value.status == 400


def test_fields_pass_through_untouched() -> None:
    fields = {
        "tools": [{"type": "function"}],
        "response_format": {"type": "json_object"},
        "n": 3,
        "stop": ["a"],
        "odd": {"x": None},
    }
    body = sent(chat(**fields), VLLM)
    assert {name: body[name] for name in fields} == fields
    assert body["messages"] == MESSAGES


def test_vllm_is_asked_for_tokens_and_the_served_name() -> None:
    body = sent(chat(), VLLM)
    assert (body["model"], body["logprobs"], body["return_token_ids"]) == ("served", True, True)
    assert "stream_options" not in body


def test_vllm_streams_are_asked_for_usage_beside_the_agents_own_options() -> None:
    body = sent(chat(stream=True, stream_options={"continuous_usage_stats": True}), VLLM)
    assert body["stream_options"] == {"continuous_usage_stats": True, "include_usage": True}


@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 1}, {"n": None, "logprobs": False, "return_token_ids": False}, {"stream": True}],
)
def test_the_plug_in_may_answer_packed_and_finds_what_to_leave_out_at_the_end(
    fields: dict[str, Any],
) -> None:
    request = chat(**fields)
    assert Chat().upstream_headers(request, VLLM) == {"x-fulgurite-tokens": "instead"}
    assert Chat().upstream_body(request, VLLM, "ours").endswith(IN_BODY)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 1},
        {"return_token_ids": True},
        {"use_beam_search": True},
    ],
)
def test_what_the_agent_sees_itself_or_is_of_several_answers_comes_in_json(
    fields: dict[str, Any],
) -> None:
    assert Chat().upstream_headers(chat(**fields), VLLM) == {}
    assert Chat().upstream_headers(chat(), OTHER) == {}


@pytest.mark.parametrize("stream", [True, False])
def test_other_upstreams_are_asked_for_nothing_extra(stream: bool) -> None:
    request = chat(stream=stream)
    assert sent(request, OTHER) == {**request.body, "model": "gpt-5"}


def test_the_agents_own_wishes_are_known() -> None:
    asked = chat(logprobs=True, return_token_ids=True, stream_options={"include_usage": True}).body
    assert wants(asked, logprobs=True) == Wants(logprobs=True, token_ids=True, usage=True)
    assert wants(chat(stream_options=None).body, logprobs=False) == Wants(
        logprobs=False, token_ids=False, usage=False
    )


@pytest.mark.parametrize(
    ("metadata", "session"),
    [({"session_id": "s"}, "s"), ({"session_id": 3}, None), ("x", None), (None, None)],
)
def test_a_session_may_be_named_in_the_metadata(metadata: Any, session: str | None) -> None:
    assert chat(metadata=metadata).session == session


def test_sampling_is_the_engines_default_unless_said_otherwise() -> None:
    assert Chat().sampling(chat(), DEFAULTS) == DEFAULTS
    sampling = Chat().sampling(
        chat(temperature=0.5, top_p=0.9, top_k=5, seed=7, max_tokens=9), DEFAULTS
    )
    assert (
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        sampling.seed,
        sampling.max_tokens,
    ) == (0.5, 0.9, 5, 7, 9)
    assert Chat().sampling(chat(max_tokens=9, max_completion_tokens=8), DEFAULTS).max_tokens == 8


def test_null_is_the_engines_default() -> None:
    assert Chat().sampling(chat(temperature=None, top_k=None, seed=None), DEFAULTS) == DEFAULTS


def test_numbers_as_text_are_recorded_and_sent_as_the_engine_would_read_them() -> None:
    request = chat(
        temperature="0", top_k="1", max_tokens="9", n="1", use_beam_search="false", logprobs="true"
    )
    sampling = Chat().sampling(request, DEFAULTS)
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens, sampling.logit_bias) == (
        0.0,
        1,
        9,
        False,
    )
    body = sent(request, OTHER)
    read = {
        "temperature": 0.0,
        "top_k": 1,
        "max_tokens": 9,
        "n": 1,
        "use_beam_search": False,
        "logprobs": True,
    }
    assert {name: body[name] for name in read} == read


def test_a_temperature_below_the_engines_least_is_recorded_as_that() -> None:
    assert [
        Chat().sampling(chat(temperature=t), DEFAULTS).temperature for t in (0, 0.005, 0.02)
    ] == [0, 0.01, 0.02]


@pytest.mark.parametrize(
    ("fields", "grammar", "bias"),
    [
        ({"response_format": {"type": "json_schema"}}, True, False),
        ({"response_format": {"type": "text"}}, False, False),
        ({"tool_choice": "required"}, True, False),
        ({"tool_choice": {"type": "function"}}, True, False),
        ({"tool_choice": "auto"}, False, False),
        ({"structured_outputs": {"regex": "a"}}, True, False),
        ({"logit_bias": {"5": -100}}, False, True),
        ({"logit_bias": {}}, False, False),
        ({"min_tokens": 3}, False, True),
    ],
)
def test_what_bends_the_distribution_is_recorded(
    fields: dict[str, Any], grammar: bool, bias: bool
) -> None:
    sampling = Chat().sampling(chat(**fields), DEFAULTS)
    assert (sampling.grammar, sampling.logit_bias) == (grammar, bias)
