"""A LoRA adapter on prefix forests is trained as PEFT and transformers would row by row, and what is
published is what was trained.
"""

# verl, peft and transformers are annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fulgurite.enums import ArtifactFormat
from fulgurite.versions import Version
from services.applier.artifacts import fetch_adapter
from services.learner.artifacts import ArtifactStore
from services.learner.errors import CheckpointForeign
from services.learner.train_row import TrainRow
from services.local_stack.model import tiny_model
from tests.services.learner.engine.test_attention import MODELS, folder_of, rows
from tests.services.learner.test_trainer import Trainer, batch, dense, sampled, step, trainer
from tests.services.learner.workers import worker_of

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

FREE = {"stop": {"k3": 1e9, "ess": 0.0}}
"""Drift that never stops a step."""


def adapted(
    *, tied: bool = True, rank: int = 4, targets: object = "all-linear", **tables: Any
) -> Trainer:
    weights = {"train": "lora", "rank": rank, "alpha": 8, "targets": targets}
    policy = {"model": tiny_model(tied=tied), "weights": weights}
    with_tables: dict[str, Any] = {"policy": policy, "drift": FREE, **tables}
    return trainer(**with_tables)


def shaken(of: Trainer, seed: int = 0) -> Trainer:
    """Its adapter as after many steps: B is 0 before the first."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in worker_of(of).module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=chance) * 0.1
                cast("Any", parameter).to_local().add_(noise)
    return of


def exported(of: Trainer, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    of.export(folder / "adapter_model.safetensors")
    return folder


def peft_model(folder: Path, *, tied: bool = True, trainable: bool = False) -> Any:
    base = AutoModelForCausalLM.from_pretrained(tiny_model(tied=tied), dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder, is_trainable=trainable)


def row_logprobs(model: Any, row: TrainRow) -> torch.Tensor:
    """Of each token, 0 of the first."""
    tokens = torch.from_numpy(row.token_ids.astype(np.int64))
    logprobs = torch.log_softmax(model(tokens[None]).logits[0, :-1], dim=-1)
    return torch.cat([torch.zeros(1), logprobs[torch.arange(len(tokens) - 1), tokens[1:]]])


def step_with_gradients(
    of: Trainer, rows: list[TrainRow]
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    gradients: dict[str, torch.Tensor] = {}

    def collect(*_: Any) -> None:
        for name, parameter in worker_of(of).module.named_parameters():
            if parameter.grad is not None:
                gradients[name] = cast("Any", parameter.grad).full_tensor().clone()

    hook = worker_of(of).optimizer.register_step_pre_hook(collect)
    metrics = step(of, rows)
    hook.remove()
    return metrics, gradients


def test_the_first_version_is_the_base_model() -> None:
    lora, full = adapted(), trainer()
    for one, other in zip(lora.row_logprobs(batch()), full.row_logprobs(batch()), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(("tied", "layout"), [(True, "forest"), (False, "forest"), (True, "rows")])
def test_a_step_equals_peft_row_by_row(tmp_path: Path, *, tied: bool, layout: str) -> None:
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import ActorConfig

    lora = shaken(adapted(tied=tied, engine={"layout": layout}, optimizer={"grad_clip": 1e9}))
    rows = sampled(lora, batch(), noise=0.2)
    peft = peft_model(exported(lora, tmp_path), tied=tied, trainable=True)
    by_row = [row_logprobs(peft, row) for row in rows]
    for ours, theirs, row in zip(lora.row_logprobs(rows), by_row, rows, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy() * row.trained, atol=2e-5)
    longest = max(len(row.token_ids) for row in rows)
    loss, _ = cast("Any", get_policy_loss_fn("vanilla"))(
        old_log_prob=dense([row.behaviour_logprobs for row in rows]),
        log_prob=torch.stack([torch.nn.functional.pad(r, (0, longest - len(r))) for r in by_row]),
        advantages=dense([row.advantages for row in rows]),
        response_mask=dense([row.trained for row in rows]),
        loss_agg_mode="seq-mean-token-mean",
        config=ActorConfig(strategy="fsdp2", rollout_n=1, use_dynamic_bsz=True),
    )
    loss.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in peft.named_parameters()
        if parameter.requires_grad
    }
    found, ours = step_with_gradients(lora, rows)
    assert found["loss"] == pytest.approx(float(loss), rel=1e-4)
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    assert found["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_an_adapter_of_every_known_type_is_what_peft_computes(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path / "base", kind, **MODELS[kind])
    policy = {"model": folder, "weights": {"train": "lora", "rank": 4}}
    lora = shaken(trainer(policy=policy))
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, exported(lora, tmp_path / "adapter"))
    for row, found in zip(rows(), lora.row_logprobs(rows()), strict=True):
        with torch.no_grad():
            expected = row_logprobs(peft, row).numpy() * row.trained
        np.testing.assert_allclose(found, expected, atol=5e-5)


def test_late_positions_are_turned_as_with_full_weights() -> None:
    """Frequencies of rotary positions in bf16 would be off by whole turns there."""
    tokens = np.random.default_rng(0).integers(1, 200, 1500).tolist()
    lora, full, exact = (
        by.logprobs(tokens)
        for by in (
            adapted(engine={"dtype": "bf16"}),
            trainer(engine={"dtype": "bf16"}),
            trainer(),
        )
    )
    assert np.abs(lora - exact).mean() < 1.5 * np.abs(full - exact).mean()


def test_only_the_adapter_changes_and_it_is_fp32_over_a_base_in_bf16() -> None:
    lora = adapted(engine={"dtype": "bf16"}, targets=["q_proj", "down_proj"])
    rows = sampled(lora, batch())

    def values() -> dict[str, torch.Tensor]:
        return {
            name: value.full_tensor().clone()
            for name, value in worker_of(lora).module.state_dict().items()
        }

    before = values()
    step(lora, rows)
    step(lora, sampled(lora, rows))
    changed = {name for name, value in values().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in changed} == {
        "q_proj",
        "down_proj",
    }
    assert {value.dtype for name, value in before.items() if name in changed} == {torch.float32}
    assert {value.dtype for name, value in before.items() if name not in changed} == {
        torch.bfloat16
    }


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_published_is_a_peft_folder_with_the_same_logprobs(
    tmp_path: Path, *, tied: bool
) -> None:
    lora = shaken(adapted(tied=tied))
    base = tiny_model(tied=tied)
    store = ArtifactStore(tmp_path, "writer", base, kind=ArtifactFormat.lora, durable=False)
    artifact = store.write(Version("writer", 1, 1), lora.export)
    folder = tmp_path / "artifacts" / "writer" / "1.1"
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }
    assert artifact.format is ArtifactFormat.lora
    assert fetch_adapter(artifact) == folder
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base.name, "a path would be wrong elsewhere"
    assert (config["r"], config["lora_alpha"], config["inference_mode"]) == (4, 8, True)
    row = batch(groups=1, samples=1)[0]
    with torch.no_grad():
        found = row_logprobs(peft_model(folder, tied=tied), row)[1:].numpy()
    np.testing.assert_allclose(found, lora.logprobs(row.token_ids.tolist()), atol=2e-5)
    plain = trainer(model=base).logprobs(row.token_ids.tolist())
    assert np.abs(found - plain).max() > 0.1


def test_the_reference_of_the_kl_is_the_model_without_its_adapter() -> None:
    from verl.trainer.ppo.core_algos import kl_penalty

    lora = shaken(adapted(algorithm={"kl": 0.5}))
    rows = sampled(lora, batch())
    ours, base = (dense(list(by.row_logprobs(rows))) for by in (lora, trainer()))
    weights = dense([row.weights for row in rows]) * dense([row.trained for row in rows])
    penalty = cast("Any", kl_penalty)(ours, base, "low_var_kl")
    expected = float((penalty * weights).sum() / weights.sum())
    assert expected > 0.01
    found = step(lora, rows)
    assert found["kl"] == pytest.approx(expected, rel=1e-3)
    assert found["loss"] == pytest.approx(found["policy_loss"] + 0.5 * found["kl"], rel=1e-4)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_adapter_is_trained_whatever_was_computed_first(dtype: str) -> None:
    """Its reference, with the adapter off, or its own log-probabilities."""
    gradients: list[dict[str, torch.Tensor]] = []
    for computes_before in (True, False):
        lora = shaken(adapted(algorithm={"kl": 0.5}, engine={"dtype": dtype}))
        if computes_before:
            lora.row_logprobs(batch())
        gradients.append(step_with_gradients(lora, batch())[1])
        assert step_with_gradients(lora, batch())[1].keys() == gradients[-1].keys()
    one, other = gradients
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        assert gradient.dtype is torch.float32
        torch.testing.assert_close(gradient, other[name])


def test_a_loaded_adapter_goes_on_as_the_saved_one_and_its_checkpoint_is_small(
    tmp_path: Path,
) -> None:
    saved, loaded = (adapted(optimizer={"lr": 1e-2}) for _ in range(2))
    rows = sampled(saved, batch())
    step(saved, rows)
    saved.save(tmp_path)
    loaded.load(tmp_path)
    one, other = step(saved, rows), step(loaded, rows)
    for name in ("loss", "grad_norm", "k3"):
        assert one[name] == other[name], name
    names = {name for file in tmp_path.iterdir() for name in load_file(file)}
    assert all("lora_" in name or name.startswith("random.") for name in names)
    trained = [p.numel() for p in worker_of(saved).module.parameters() if p.requires_grad]
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert size < 3 * 4 * sum(trained) + 64 * 1024


@pytest.mark.parametrize("other", [{"rank": 8}, {"targets": ["q_proj"]}])
def test_a_checkpoint_of_another_adapter_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    adapted().save(tmp_path)
    with pytest.raises(CheckpointForeign, match=r"Set policy\.model and policy\.weights to what"):
        adapted(**other).load(tmp_path)


def test_actions_keep_their_temperatures_with_an_adapter(tmp_path: Path) -> None:
    lora = shaken(adapted())
    rows = [
        msgspec.structs.replace(row, temperature=np.full(len(row.trained), 0.7, np.float32))
        for row in batch(groups=1)
    ]
    peft = peft_model(exported(lora, tmp_path))
    for row, found in zip(rows, lora.row_logprobs(rows), strict=True):
        tokens = torch.from_numpy(row.token_ids.astype(np.int64))
        with torch.no_grad():
            scaled = torch.log_softmax(peft(tokens[None]).logits[0, :-1] / 0.7, dim=-1)
        expected = scaled[torch.arange(len(tokens) - 1), tokens[1:]].numpy() * row.trained[1:]
        np.testing.assert_allclose(found[1:], expected, atol=2e-5)
