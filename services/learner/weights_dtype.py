"""Decides the type of a version's weights, and names it where loaders look for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch

_KEYS = ("dtype", "torch_dtype")
"""Of config.json, in transformers 5 and before."""


def version_dtype(base: torch.dtype | None, computed: torch.dtype) -> torch.dtype:
    """Return the base model's type, or the one that a step computes in, if that is more precise.

    A step of AdamW changes a weight by about the learning rate. Rounded to bf16, most weights of a
    version would be those of the version before, and the engine would sample another policy than
    the one that is trained.
    """
    return computed if base is None else torch.promote_types(base, computed)


def write_model_config(base: Path, dtype: torch.dtype, folder: Path) -> None:
    """Write a base model's config.json into a version's folder, with the type of its weights."""
    config: dict[str, Any] = msgspec.json.decode((base / "config.json").read_bytes())
    name = str(dtype).removeprefix("torch.")
    config |= {key: name for key in _KEYS if key in config}
    (folder / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(config)))
