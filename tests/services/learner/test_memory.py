"""The computed memory is that which was measured, and the page has the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.learner.memory import (
    GIB,
    MODELS,
    Shape,
    activation_bytes,
    main,
    shape_of,
    training_memory,
)
from services.local_stack.model import tiny_model

LLAMA_1B = Shape(2048, 8192, 16, 32, 8, 64, 128256, tied=True)
PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "several-gpus.md"


@pytest.mark.parametrize(
    ("tokens", "measured_gib"), [(3_288, 6.6), (81_480, 19), (145_740, 32), (185_640, 40)]
)
def test_activations_are_those_that_were_measured(tokens: int, measured_gib: float) -> None:
    """On one H200: weights and gradients in bf16, FlexAttention, gradient checkpointing, and the head
    in parts of 4,096 tokens, whose logits are in fp32.
    """
    head = 4 * min(tokens, 4_096) * LLAMA_1B.vocabulary
    computed = 2 * 2 * LLAMA_1B.parameters + activation_bytes(LLAMA_1B, tokens) + head
    assert computed / GIB == pytest.approx(measured_gib, rel=0.13)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Qwen3-0.6B", 0.596), ("Qwen3-4B", 4.02), ("Qwen3-8B", 8.19), ("Qwen3-32B", 32.76)],
)
def test_shapes_have_the_parameters_that_their_makers_name(name: str, billions: float) -> None:
    assert MODELS[name].parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_what_is_shared_and_what_is_not() -> None:
    shape = MODELS["Qwen3-8B"]
    alone, eight = (training_memory(shape, gpus, 8192) for gpus in (1, 8))
    assert eight.state == alone.state // 8
    assert eight[1:] == alone[1:]
    adapter = training_memory(shape, 1, 8192, lora_rank=16)
    # Its 44 million parameters, and the base in bf16.
    assert shape.adapter_parameters(16) == pytest.approx(43.6e6, rel=0.01)
    assert adapter.state == 2 * shape.parameters + 16 * shape.adapter_parameters(16)
    assert adapter.gathered == 0


def test_a_shape_is_read_from_a_models_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = shape_of(tiny_model())
    assert shape.tied
    assert shape.hidden == shape.heads * shape.head_size
    main([str(tiny_model())])
    assert f"| {tiny_model().name} | 0 (24) |" in capsys.readouterr().out
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4, "hidden_size": 64}')
    with pytest.raises(ValueError, match="has no 'intermediate_size': memory is computed of dense"):
        shape_of(tmp_path)


def test_the_page_has_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert capsys.readouterr().out in PAGE.read_text()
