"""Writes the configuration of a LoRA adapter, so that its folder is in PEFT's layout."""

# peft is annotated in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import copy
from pathlib import Path

from peft import LoraConfig, PeftConfig
from transformers import PretrainedConfig


def write_config(config: PeftConfig, base: PretrainedConfig, folder: Path) -> None:
    """Write `adapter_config.json` of an adapter of a base model."""
    written = copy.copy(config)
    written.base_model_name_or_path = base_name(base)
    written.inference_mode = True
    if isinstance(written, LoraConfig) and isinstance(written.target_modules, set):
        # A set has another order in every process.
        written.target_modules = sorted(written.target_modules)  # pyright: ignore[reportAttributeAccessIssue]
    written.save_pretrained(str(folder))


def base_name(base: PretrainedConfig) -> str:
    """The base model's name: of the hub where its folder comes from there, else the folder's.

    A path would be wrong on every other machine.
    """
    folder = Path(base.name_or_path or "")
    for part in folder.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return folder.name
