"""LoRA on vLLM's CPU engine, adapter by adapter instead of token by token (vLLM 0.32).

vLLM's own `PunicaWrapperCPU` copies an adapter's matrices for every token, which takes longer than
the model itself, and for a token without an adapter it takes those of the last slot: once all slots
are used, the base model answers as that adapter does. Here the tokens of each adapter are
multiplied at once, and others are left alone. `tests/services/vllm_plugin/test_cpu_lora.py`
compares this with the plain definition.
"""

# torch is annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch

Rows = slice | torch.Tensor


class Share(NamedTuple):
    """The tokens of a step that one adapter answers."""

    slot: int
    rows: Rows


def shares(slots: torch.Tensor) -> list[Share]:
    """The adapters of a step. `slots` (tokens,): each token's adapter, below 0 for none."""
    distinct: list[int] = slots.unique().tolist()
    if len(distinct) == 1:
        return [Share(distinct[0], slice(None))] if distinct[0] >= 0 else []
    return [Share(slot, (slots == slot).nonzero().flatten()) for slot in distinct if slot >= 0]


def shrink(
    output: torch.Tensor,
    inputs: torch.Tensor,
    weights: torch.Tensor,
    parts: list[Share],
    scale: float,
) -> None:
    """output (tokens, rank) = scale · inputs (tokens, n) · weights (slots, 1, rank, n)ᵀ; 0 where
    there is no adapter.
    """
    output.zero_()
    for slot, rows in parts:
        matrix = weights[slot].squeeze(0)
        low = inputs[rows].to(matrix.dtype) @ matrix.T
        output[rows, : matrix.shape[0]] = scale * low.to(output.dtype)


def expand(
    output: torch.Tensor,
    inputs: torch.Tensor,
    weights: torch.Tensor,
    parts: list[Share],
    *,
    add: bool,
) -> None:
    """output (tokens, m) += inputs (tokens, rank) · weights (slots, 1, m, rank)ᵀ, or = without
    `add`; as it was where there is no adapter.
    """
    for slot, rows in parts:
        matrix = weights[slot].squeeze(0).to(output.dtype)
        product = inputs[rows].to(output.dtype) @ matrix.T
        if add:
            output[rows] += product
        else:
            output[rows] = product


def patch(wrapper: Any) -> None:
    """Make the class compute so. Idempotent."""
    update_metadata = wrapper.update_metadata
    if getattr(update_metadata, "patched", False):
        return

    def update_and_share(self: Any, *args: Any, **kwargs: Any) -> None:
        update_metadata(self, *args, **kwargs)
        self.shares = shares(self.token_lora_indices)

    def apply_shrink(self: Any, y: Any, x: Any, w_t_all: Any, scale: float) -> None:
        shrink(y.view(-1, y.shape[-1]), x, w_t_all, self.shares, scale)

    def apply_expand(
        self: Any,
        y: Any,
        x: Any,
        w_t_all: Any,
        y_offset: int,
        y_slice_size: int,
        add_inputs: bool = True,
    ) -> None:
        part = y[:, y_offset : y_offset + y_slice_size]
        expand(part, x, w_t_all, self.shares, add=add_inputs)

    update_and_share.patched = True  # pyright: ignore[reportFunctionMemberAccess]
    wrapper.update_metadata = update_and_share
    wrapper._apply_shrink = apply_shrink
    wrapper._apply_expand = apply_expand
