"""Which policies one vLLM serves together, and with which arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.learner.config import RunConfig
from services.local_stack.errors import PoliciesConflict
from services.local_stack.serving import RANKS, plan_serving


def run(name: str, **keys: Any) -> RunConfig:
    return RunConfig.model_validate({"policy": {"name": name, "model": "/models/a", **keys}})


def lora(rank: int = 16) -> dict[str, Any]:
    return {"train": "lora", "rank": rank}


def test_one_policy_of_full_weights_is_served_as_it_is() -> None:
    for keys in ({}, {"frozen": True}):
        serving = plan_serving([run("policy", **keys)])
        assert (serving.policy, serving.adapters, serving.arguments()) == ("policy", (), [])
        assert serving.vllm_environment() == {}
        assert serving.environment().keys() & {"FULGURITE_LORA_POLICIES"} == set()


def test_one_adapter_is_served_beside_its_base() -> None:
    serving = plan_serving([run("policy", weights=lora())])
    assert serving.adapters == ("policy",)
    assert serving.environment()["FULGURITE_LORA_POLICIES"] == "policy"
    assert serving.vllm_environment() == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def test_a_frozen_policy_is_an_adapter_without_updates() -> None:
    serving = plan_serving([run("critic", frozen=True), run("writer", weights=lora(9))])
    assert (serving.policy, serving.trained, serving.frozen) == (
        "writer",
        ("writer",),
        ("critic",),
    )
    assert serving.adapters == ("critic", "writer")
    assert "--max-lora-rank=16" in serving.arguments()
    assert serving.environment()["FULGURITE_REWARDER_FROZEN_POLICIES"] == "critic"


@pytest.mark.parametrize("rank", [1, 2, 8, 100, RANKS[-1]])
def test_the_largest_rank_is_one_that_vllm_takes(rank: int) -> None:
    (argument,) = [
        one
        for one in plan_serving([run("p", weights=lora(rank))]).arguments()
        if one.startswith("--max-lora-rank=")
    ]
    served = int(argument.partition("=")[2])
    assert served in RANKS
    assert served >= rank


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([run("a"), run("b")], "a trains all weights, and a new version of it replaces those that b"),
        ([run("a", weights=lora()), run("b")], "b trains all weights"),
        ([run("a"), run("b", frozen=True)], "a trains all weights"),
        ([run("a", weights=lora()), run("b", model=Path("/models/b"), weights=lora())], "several base models (a: /models/a, b: /models/b)"),
        ([run("a", weights=lora(RANKS[-1] + 1))], "rank 513, and vLLM serves up to 512"),
    ],
)  # fmt: skip
def test_what_one_vllm_cannot_serve_is_refused(runs: list[RunConfig], says: str) -> None:
    with pytest.raises(PoliciesConflict) as error:
        plan_serving(runs)
    assert says in str(error.value)
