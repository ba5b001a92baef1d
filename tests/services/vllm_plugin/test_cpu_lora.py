"""LoRA adapter by adapter against its definition, token by token."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from services.vllm_plugin.cpu_lora import expand, patch, shares, shrink

RANK, INPUTS, OUTPUTS, SLOTS = 4, 16, 24, 3
SCALE = 2.0


@pytest.fixture(autouse=True)
def _seeded() -> None:
    cast(Any, torch).manual_seed(0)


@pytest.mark.parametrize(
    "slots",
    [[0, 0, 0, 0, 0], [2, 0, 2, 1, 0], [-1, 2, -1, 0, -1], [-1, -1, -1, -1, -1], [2], [-1]],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("add", [True, False])
def test_each_token_gets_its_own_adapter_or_none(
    slots: list[int], dtype: torch.dtype, add: bool
) -> None:
    inputs = torch.randn(len(slots), INPUTS, dtype=dtype)
    down = torch.randn(SLOTS, 1, RANK, INPUTS, dtype=dtype)
    up = torch.randn(SLOTS, 1, OUTPUTS, RANK, dtype=dtype)
    before = torch.randn(len(slots), OUTPUTS, dtype=dtype)
    parts = shares(torch.tensor(slots))

    low = torch.full((len(slots), RANK), float("nan"))
    shrink(low, inputs, down, parts, SCALE)
    found = before.clone()
    expand(found, low, up, parts, add=add)

    expected = before.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            of_token = SCALE * (down[slot, 0].float() @ inputs[row].float())
            delta = up[slot, 0].float() @ of_token
            expected[row] = ((before[row].float() if add else 0) + delta).to(dtype)
    torch.testing.assert_close(
        found, expected, rtol=2e-2, atol=0.3 if dtype is torch.bfloat16 else 1e-4
    )
    untouched = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(found[untouched], before[untouched])
    assert torch.equal(low[untouched], torch.zeros(len(untouched), RANK))


def test_a_slice_of_the_output_is_written_and_no_more() -> None:
    class Wrapper:
        def __init__(self) -> None:
            self.token_lora_indices = torch.tensor([-1])

        def update_metadata(self, slots: list[int]) -> None:
            self.token_lora_indices = torch.tensor(slots)

    patch(Wrapper)
    patched = Wrapper.update_metadata
    patch(Wrapper)
    assert Wrapper.update_metadata is patched
    wrapper: Any = Wrapper()
    wrapper.update_metadata([1, -1])
    inputs, output = torch.ones(2, INPUTS), torch.zeros(2, OUTPUTS)
    down, up = torch.ones(SLOTS, 1, RANK, INPUTS), torch.ones(SLOTS, 1, 8, RANK)
    low = torch.zeros(2, RANK)
    wrapper._apply_shrink(low, inputs, down, SCALE)
    wrapper._apply_expand(output, low, up, 8, 8)
    expected = torch.zeros(2, OUTPUTS)
    expected[0, 8:16] = SCALE * INPUTS * RANK
    assert torch.equal(output, expected)
