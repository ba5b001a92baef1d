"""Rows that no sample comes from are not given to LoRA's logits on a CPU."""

from __future__ import annotations

import numpy as np
import pytest

from services.vllm_plugin.prompt_logprobs import patch


class Wrapper:
    """Shaped as vLLM's: two requests are sampled from."""

    def __init__(self) -> None:
        self.sampler_indices = np.zeros(2)
        self.added = 0

    def add_lora_logits(self, y: object, x: object) -> None:
        self.added += 1


@pytest.mark.parametrize(("rows", "added"), [(2, 1), (31, 0)])
def test_only_rows_of_samples_get_an_adapters_logits(rows: int, added: int) -> None:
    made = type("Made", (Wrapper,), {})
    patch(made)
    patch(made)
    wrapper = made()
    x = np.zeros((rows, 8))

    class Tensor:
        shape = x.shape

        def numel(self) -> int:
            return x.size

    wrapper.add_lora_logits(None, Tensor())
    assert wrapper.added == added
