"""A pulled version serves in a vLLM of its own, with the log-probabilities that the learner has."""

# transformers is annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyUpdate
from fulgurite.versions import Version
from services.applier.engine import Engine
from services.cli.pull import pull
from services.learner.artifacts import ArtifactStore
from services.learner.config import RunConfig
from services.local_stack.model import tiny_model
from services.local_stack.vllm_local import LocalVllm
from tests.integration.lora_adapter import hugging_face_logprobs
from tests.services.learner.workers import worker_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from services.learner.engine.cpu_platform import select

    select("cpu")
    from services.learner.trainer import Trainer

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
    ),
]

TOKENS = list(range(40, 72))
SAME = 0.1
"""Mean difference of log-probabilities: bf16 against float32."""
OTHER = 0.5


async def served_logprobs(url: str) -> list[float]:
    async with Engine(url) as engine:
        return await engine.prompt_logprobs(TOKENS)


def test_a_pulled_folder_is_served_as_the_learner_has_it(tmp_path: Path) -> None:
    engine = {"dtype": "fp32", "device": "cpu"}
    trainer = Trainer(
        RunConfig.model_validate({"policy": {"model": tiny_model()}, "engine": engine})
    )
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in worker_of(trainer).module.parameters():
            local = cast("Any", parameter).to_local()
            noise = torch.randn(parameter.shape, generator=chance) * local.std().nan_to_num(0.0)
            local.copy_((local + noise).bfloat16().float())
    learned = trainer.logprobs(TOKENS)
    store = ArtifactStore(tmp_path, "policy", tiny_model(), durable=False)
    update = PolicyUpdate(
        event_id="u",
        event_time=1,
        policy="policy",
        kind=UpdateKind.update,
        epoch=1,
        step=1,
        version="policy@1.1",
        learner_id="l",
        trained_actions=1,
        artifact=store.write(Version("policy", 1, 1), trainer.export),
    )
    pull(update, tmp_path / "mine")
    with LocalVllm(tmp_path / "mine", tmp_path / "vllm") as vllm:
        served = asyncio.run(served_logprobs(vllm.base_url))
    assert float(np.abs(np.subtract(served, learned)).mean()) < SAME
    base = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
    before = hugging_face_logprobs(base, TOKENS)
    assert float(np.abs(np.subtract(served, before)).mean()) > OTHER
