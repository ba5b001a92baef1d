"""A version's folder is one that every Hugging Face tool reads."""

# transformers is annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fulgurite.versions import Version
from services.learner.artifacts import ArtifactStore
from services.learner.config import RunConfig
from services.local_stack.model import tiny_model
from tests.services.learner.workers import worker_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from services.learner.engine.cpu_platform import select

    select("cpu")
    from services.learner.trainer import Trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

TOKENS = [5, 17, 99, 3, 64, 12]


@pytest.mark.parametrize("tied", [True, False])
def test_a_version_loads_with_transformers_and_says_what_the_trainer_says(
    tmp_path: Path, *, tied: bool
) -> None:
    base = tiny_model(tied=tied)
    engine = {"dtype": "fp32", "device": "cpu"}
    trainer = Trainer(RunConfig.model_validate({"policy": {"model": base}, "engine": engine}))
    with torch.no_grad():
        for parameter in worker_of(trainer).module.parameters():
            # Numbers that bf16, the type of the artifact, can hold.
            parameter.copy_((parameter + 0.01).bfloat16().float())
    store = ArtifactStore(tmp_path, "policy", base, durable=False)
    artifact = store.write(Version("policy", 1, 1), trainer.export)
    folder = tmp_path / "artifacts" / "policy" / "1.1"
    assert artifact.uri == (folder / "model.safetensors").as_uri()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([TOKENS])).logits[0, :-1], dim=-1)
    found = logprobs[torch.arange(len(TOKENS) - 1), torch.tensor(TOKENS[1:])].numpy()
    np.testing.assert_allclose(found, trainer.logprobs(TOKENS), atol=2e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(base).chat_template


def test_weights_of_the_base_model_are_not_copied(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "original").mkdir(parents=True)
    for name in ("config.json", "model-00001-of-00002.safetensors", "pytorch_model.bin", ".git"):
        (base / name).write_text(name)
    (base / "model.safetensors.index.json").write_text("{}")
    store = ArtifactStore(tmp_path, "policy", base, durable=False)
    store.write(Version("policy", 1, 1), Path.touch)
    folder = tmp_path / "artifacts" / "policy" / "1.1"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "manifest.json",
        "model.safetensors",
    }
