"""What an alias declares replaces what the agent asked, in training alone, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from fulgurite.enums import Mode
from fulgurite.events import Sampling
from services.gateway.dialects.dialect import ApiRequest
from services.gateway.dialects.train_sampling import Sampled, TrainSamplings
from services.gateway.settings import SamplingDefaults, TrainSampling
from services.gateway.upstream.route import Route

TRAINED = Route("policy", "b", "http://b", "vllm", "policy", "policy", None)
UNTRAINED = Route("policy", "b", "http://b", "openai", "gpt", None, None)
DECLARED = TrainSamplings(
    {"policy": TrainSampling(), "hot": TrainSampling(temperature=1.2, top_p=0.9)}
)


def apply(
    alias: str = "policy", mode: Mode = Mode.train, route: Route = TRAINED, **asked: Any
) -> Sampled:
    defaults = SamplingDefaults().model_dump()
    effective = Sampling(**{**defaults, **asked}, logit_bias=False, grammar=False)
    return DECLARED.apply(
        ApiRequest({"model": alias, **asked}, alias, False, None), effective, route, mode
    )


def test_training_is_at_temperature_one_without_truncation() -> None:
    done = apply(temperature=0.2, top_p=0.5, top_k=4, presence_penalty=0.5)
    assert done.request.body == {
        "model": "policy",
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "presence_penalty": 0.5,
    }
    assert (
        done.sampling.temperature,
        done.sampling.top_p,
        done.sampling.top_k,
        done.sampling.presence_penalty,
    ) == (1.0, 1.0, 0, 0.5)
    assert done.header == "temperature=1, top_p=1, top_k=0, min_p=0"


def test_what_is_so_already_is_not_touched_but_told() -> None:
    done = apply()
    assert done.request.body == {"model": "policy"}
    assert done.header is not None


def test_an_alias_has_its_own() -> None:
    done = apply("hot", temperature=0)
    assert (done.request.body["temperature"], done.request.body["top_p"]) == (1.2, 0.9)
    assert done.header == "temperature=1.2, top_p=0.9, top_k=0, min_p=0"


@pytest.mark.parametrize(
    ("alias", "mode", "route"),
    [
        ("policy", Mode.val, TRAINED),
        ("policy", Mode.live, TRAINED),
        ("other", Mode.train, TRAINED),
        ("policy", Mode.train, UNTRAINED),
    ],
)
def test_nothing_else_is_ever_overwritten(alias: str, mode: Mode, route: Route) -> None:
    done = apply(alias, mode, route, temperature=0.2)
    assert (done.request.body["temperature"], done.sampling.temperature, done.header) == (
        0.2,
        0.2,
        None,
    )
