"""What each node of a prefix forest may attend to, layer by layer: itself and its ancestors, in
layers with a sliding window only the nearest of them.

transformers takes a finished mask as it is, or one for each type of layer. Layers that carry a
state from token to token (recurrent, convolutional, linear attention) run over the depth-first
order of a forest as if it were one text: models with such layers are refused, and train with
`engine.layout = "rows"`.
"""

# transformers is annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from fulgurite.trajectories.forest import Forest
from services.learner.errors import IncompatibleModel

_FULL, _SLIDING = "full_attention", "sliding_attention"

CHECKED = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "phi3", "olmo2"}
)
"""Types of models whose layers all are attention with a mask that transformers lets us set. Any
other is tried out on a few rows before it is trained.
"""


BLOCK = 128
"""Nodes in a block of FlexAttention's masks: its kernels' own."""


def check_model(folder: Path, *, forest: bool, flex: bool = False) -> None:
    """Raise IncompatibleModel for a model whose attention cannot be masked as rows, or a forest of
    them, need it. `flex`: with FlexAttention.
    """
    config = AutoConfig.from_pretrained(folder)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    # The attribute is private; without it the model would fail while it is loaded.
    if kind is None or not getattr(kind, "_supports_sdpa", False):
        raise IncompatibleModel(
            f"{config.model_type} has no attention that the trainer can mask: transformers gives "
            "it no scaled_dot_product_attention; train another model"
        )
    if flex and not getattr(kind, "_supports_flex_attn", False):
        raise IncompatibleModel(
            f"transformers gives {config.model_type} no FlexAttention; set engine.attention = "
            '"dense"'
        )
    if forest:
        windows_of(config)


def windows_of(config: Any) -> Mapping[str, int | None]:
    """The types of a model's layers and their sliding windows in tokens, None for full attention.

    Raises IncompatibleModel for types that a forest cannot have.
    """
    window: int | None = getattr(config, "sliding_window", None)
    types: list[str] | None = getattr(config, "layer_types", None)
    if types is None:
        return {_FULL if window is None else _SLIDING: window}
    unknown = sorted(set(types) - {_FULL, _SLIDING})
    if unknown:
        raise IncompatibleModel(
            f"{config.model_type} has layers of {', '.join(unknown)}, which see rows one after the "
            'other; set engine.layout = "rows", which computes them one by one'
        )
    return {kind: window if kind == _SLIDING else None for kind in sorted(set(types))}


def masks_of(
    trie: Forest, windows: Mapping[str, int | None], dtype: torch.dtype, device: torch.device
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Masks (1, 1, N, N) to be added to the scores: one, or one for each type of layer.

    Made once in the type that the model computes in: of a mask of booleans every layer would make
    and keep such a mask of its own.
    """
    allowed_NN = torch.as_tensor(trie.mask_NN(), device=device)
    depth_N = torch.as_tensor(trie.depth_N, device=device)
    masks: dict[str, torch.Tensor] = {}
    for kind, window in windows.items():
        seen_NN = (
            allowed_NN
            if window is None
            else allowed_NN & (depth_N[:, None] - depth_N[None, :] < window)
        )
        empty = torch.zeros(seen_NN.shape, dtype=dtype, device=device)
        masks[kind] = empty.masked_fill_(~seen_NN, torch.finfo(dtype).min)[None, None]
    return masks if len(masks) > 1 else next(iter(masks.values()))


def padded_length(nodes: int) -> int:
    """A length for so many nodes: FlexAttention compiles for each one, so there are few, at most an
    eighth longer.
    """
    step = max(BLOCK, 1 << max(0, nodes.bit_length() - 4))
    return -(-nodes // step) * step


def block_masks_of(
    trie: Forest, windows: Mapping[str, int | None], device: torch.device
) -> BlockMask | dict[str, BlockMask]:
    """Masks for FlexAttention: one, or one for each type of layer. Their size is that of the block
    lists, which come from the ends of subtrees; no dense mask is made.

    The forest must have a multiple of BLOCK nodes.
    """
    end_N = torch.as_tensor(trie.end_N, device=device)
    depth_N = torch.as_tensor(trie.depth_N, device=device)
    masks = {kind: _block_mask(trie, window, end_N, depth_N) for kind, window in windows.items()}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _block_mask(
    trie: Forest, window: int | None, end_N: torch.Tensor, depth_N: torch.Tensor
) -> BlockMask:
    def sees(
        _batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        allowed = (key <= query) & (query < end_N[key])
        return allowed if window is None else allowed & (depth_N[query] - depth_N[key] < window)

    any_BB, all_BB = trie.blocks_BB(BLOCK, window)
    partial, full = (
        _lists(torch.as_tensor(blocks_BB, device=end_N.device))
        for blocks_BB in (any_BB & ~all_BB, all_BB)
    )
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=sees)


def _lists(blocks_BB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each block of queries, of one batch and any head: how many blocks of keys, and which,
    these first.
    """
    count_B = blocks_BB.sum(dim=-1, dtype=torch.int32)
    order_BB = blocks_BB.int().argsort(dim=-1, descending=True, stable=True).int()
    return count_B[None, None], order_BB[None, None]
