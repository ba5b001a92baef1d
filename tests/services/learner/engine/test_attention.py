"""A forest's log-probabilities are Hugging Face's row by row, whatever the layers attend to."""

# transformers is annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.flex_attention import WrappedFlexAttention

from fulgurite.trajectories import forest
from services.learner.config import RunConfig
from services.learner.errors import IncompatibleModel
from services.learner.train_row import TrainRow
from services.local_stack.model import tiny_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from services.learner.engine.cpu_platform import select

    select("cpu")
    from services.learner.engine import attention, forest_engine
    from services.learner.trainer import Trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
WINDOW = {"sliding_window": 5}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": WINDOW,
    "qwen2": {**WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {},
    "gemma2": WINDOW,
    "gemma3_text": {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "smollm3": {**WINDOW, "use_sliding_window": True, "no_rope_layers": [1, 0]}
    | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "phi3": {**WINDOW, "pad_token_id": 0},
    "olmo2": {},
}


def folder_of(tmp_path: Path, kind: str, **fields: Any) -> Path:
    """A tiny random model of this type, whose weights are large enough for context to matter."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **fields})
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 4
    model.save_pretrained(tmp_path)
    for file in tiny_model().glob("token*"):
        shutil.copy(file, tmp_path)
    return tmp_path


def trainer(folder: Path) -> Trainer:
    return Trainer(
        RunConfig.model_validate(
            {"policy": {"model": folder}, "engine": {"dtype": "fp32", "device": "cpu"}}
        )
    )


def rows() -> list[TrainRow]:
    """Rows that share a prefix longer than the window, and part at several places."""
    chance = np.random.default_rng(0)
    stem = chance.integers(1, 200, 12)
    made: list[TrainRow] = []
    for shared in (12, 12, 7, 3):
        tokens = np.concatenate([stem[:shared], chance.integers(1, 200, 9)]).astype(np.int32)
        zeros = np.zeros(len(tokens), np.float32)
        made.append(TrainRow(tokens, np.arange(len(tokens)) > 0, zeros, zeros, zeros, zeros + 1))
    return made


def reference(folder: Path, row: TrainRow) -> NDArray[np.float32]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.from_numpy(row.token_ids.astype(np.int64))
    with torch.no_grad():
        logprobs = torch.log_softmax(model(tokens[None]).logits[0, :-1].float(), dim=-1)
    told = logprobs[torch.arange(len(tokens) - 1), tokens[1:]].numpy()
    return np.concatenate([np.zeros(1, np.float32), told])


@pytest.mark.parametrize("kind", MODELS)
def test_a_forest_is_what_hugging_face_computes_row_by_row(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path, kind, **MODELS[kind])
    for told, row in zip(trainer(folder).row_logprobs(rows()), rows(), strict=True):
        np.testing.assert_allclose(told, reference(folder, row), atol=5e-5)


def test_rows_behind_a_window_see_what_the_window_lets_them(tmp_path: Path) -> None:
    """The test above could not fail if the rows were shorter than the window."""
    wide = folder_of(tmp_path / "wide", "mistral", sliding_window=500)
    narrow = folder_of(tmp_path / "narrow", "mistral", **WINDOW)
    row = rows()[0]
    assert np.abs(reference(wide, row) - reference(narrow, row)).max() > 0.01


CONV = {"layer_types": ["conv", "full_attention"]}


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("lfm2", CONV, "lfm2 has layers of conv"),
        ("mamba", {"state_size": 8}, "mamba has no attention that the trainer can mask"),
    ],
)
def test_layers_that_see_rows_one_after_the_other_are_refused(
    tmp_path: Path, kind: str, fields: dict[str, Any], says: str
) -> None:
    folder = folder_of(tmp_path, kind, **fields)
    with pytest.raises(IncompatibleModel, match=says):
        trainer(folder)


def test_a_model_that_says_nothing_of_such_layers_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_are_full(config: object) -> dict[str, None]:
        return {"full_attention": None}

    monkeypatch.setattr(attention, "windows_of", all_are_full)
    monkeypatch.setattr(forest_engine, "windows_of", all_are_full)
    folder = folder_of(tmp_path, "lfm2", **CONV)
    with pytest.raises(IncompatibleModel, match="lfm2 computes rows otherwise as a forest"):
        trainer(folder)


def test_a_model_that_is_on_no_list_is_tried_out_and_trained(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "granite")
    row = rows()[0]
    (told,) = trainer(folder).row_logprobs([row])
    np.testing.assert_allclose(told, reference(folder, row), atol=5e-5)


@pytest.mark.parametrize("nodes", [1, 127, 128, 129, 1_000, 5_000, 185_640])
def test_a_padded_length_is_a_number_of_blocks_and_little_longer(nodes: int) -> None:
    length = attention.padded_length(nodes)
    assert length >= nodes
    assert length % attention.BLOCK == 0
    assert length - nodes < max(attention.BLOCK, nodes / 8)


def test_there_are_few_padded_lengths() -> None:
    assert len({attention.padded_length(nodes) for nodes in range(4_096, 8_193)}) <= 9


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_flex_attention_sees_what_a_dense_mask_lets_it_see(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward pass only: FlexAttention has no backward pass on a CPU."""

    def eager(_of: object) -> object:
        return flex_attention

    # Compiling takes longer than all else here; the function is the same.
    monkeypatch.setattr(WrappedFlexAttention, "__call__", eager)
    fields = {**MODELS[kind], "head_dim": 16}
    model = AutoModelForCausalLM.from_pretrained(folder_of(tmp_path, kind, **fields))
    windows = attention.windows_of(model.config)
    batch = rows() + [many_times_longer(row) for row in rows()]
    trie = forest.build([row.token_ids for row in batch], [row.trained for row in batch])
    trie = trie.padded(attention.padded_length(len(trie)))
    assert len(trie) > attention.BLOCK
    device = torch.device("cpu")
    put = torch.as_tensor
    inputs = {"input_ids": put(trie.tokens_N)[None], "position_ids": put(trie.depth_N)[None]}
    logits: list[torch.Tensor] = []
    for implementation, masks in (
        ("sdpa", attention.masks_of(trie, windows, torch.float32, device)),
        ("flex_attention", attention.block_masks_of(trie, windows, device)),
    ):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            logits.append(model(**inputs, attention_mask=masks).logits)
    torch.testing.assert_close(logits[1], logits[0], atol=2e-4, rtol=1e-4)


def many_times_longer(row: TrainRow) -> TrainRow:
    """The row with a text of its own after it, so that a forest has several blocks."""
    chance = np.random.default_rng(int(row.token_ids.sum()))
    tokens = np.concatenate([row.token_ids, chance.integers(1, 200, 60)]).astype(np.int32)
    zeros = np.zeros(len(tokens), np.float32)
    return TrainRow(tokens, np.arange(len(tokens)) > 0, zeros, zeros, zeros, zeros + 1)
