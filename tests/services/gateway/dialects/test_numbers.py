"""Numbers as text and of other types: what vLLM's request models would read, or a refusal."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from fulgurite.enums import Mode
from services.gateway.dialects.chat import Chat
from services.gateway.dialects.numbers import KINDS, coerce_numbers
from services.gateway.dialects.train_sampling import TrainSamplings
from services.gateway.errors import InvalidRequest
from services.gateway.settings import GatewaySettings, SamplingDefaults, TrainSampling


class Engine(BaseModel):
    """The fields as vLLM declares them."""

    model_config = ConfigDict(extra="allow")

    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    top_k: int | None = None
    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    min_tokens: int | None = None
    seed: int | None = None
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    use_beam_search: bool | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    echo: bool | None = None
    watermarking: bool | None = None


TEXTS = st.one_of(
    st.text(max_size=6),
    st.floats().map(str),
    st.integers().map(str),
    st.integers(-5, 5).map(lambda n: f" {n}.0 "),
    st.sampled_from(
        [
            "true",
            "false",
            "yes",
            "off",
            "1_000",
            "1e3",
            "nan",
            "inf",
            "-Infinity",
            "0x10",
            "",
            "٣",
            "9" * 5000,
        ]
    ),
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXTS,
    st.lists(st.integers(), max_size=2),
)


def test_every_field_is_compared() -> None:
    assert Engine.model_fields.keys() == KINDS.keys()


@given(st.sampled_from(sorted(KINDS)), VALUES)
def test_what_is_taken_is_what_the_engine_reads(name: str, value: Any) -> None:
    body = {name: value, "model": "policy"}
    if not _readable(name, value):
        with pytest.raises(InvalidRequest) as caught:
            coerce_numbers(body)
        assert caught.value.param == name
        assert len(caught.value.message) < 200
        return
    coerce_numbers(body)
    read = getattr(Engine.model_validate({name: value}), name)
    # A whole number beyond 2^53 is not exactly a float.
    assert body[name] == read or float(body[name]) == read
    assert read is None or (
        type(read) is KINDS[name] and (type(body[name]) is type(read) or KINDS[name] is float)
    )
    msgspec.json.encode(body)


def _readable(name: str, value: Any) -> bool:
    try:
        read = getattr(Engine.model_validate({name: value}), name)
    except ValidationError:
        return False
    if KINDS[name] is int and read is not None:
        bits = 63 if name == "seed" else 31
        return -(1 << bits) <= read < 1 << bits
    return read is None or (
        math.isfinite(read) and (type(value) is not int or abs(value) <= 1 << 63)
    )


@pytest.mark.parametrize(
    "name", ["top_k", "max_tokens", "max_completion_tokens", "n", "min_tokens"]
)
@pytest.mark.parametrize("value", [2147483648, "2147483648", -2147483649, 4294967296.0, 1 << 70])
def test_what_does_not_fit_the_log_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"`{name}` must lie between"):
        coerce_numbers({name: value})


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "hot", [1], {}, 10**400])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="`temperature` must"):
        coerce_numbers({"temperature": value})


def test_declared_sampling_replaces_what_came_as_text() -> None:
    request = Chat().parse(b'{"model":"policy","messages":[],"temperature":"0","top_k":"1"}')
    sampling = Chat().sampling(request, SamplingDefaults().sampling())
    route = GatewaySettings.model_validate({"signing_keys": "k1:0123456789abcdef"}).routes()[
        "policy"
    ]
    sampled = TrainSamplings({"policy": TrainSampling()}).apply(
        request, sampling, route, Mode.train
    )
    assert (sampled.sampling.temperature, sampled.sampling.top_k) == (1.0, 0)
    assert (sampled.request.body["temperature"], sampled.request.body["top_k"]) == (1.0, 0)
