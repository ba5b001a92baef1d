"""Checks that a folder is a model that can be trained and served, without loading it."""

from __future__ import annotations

from pathlib import Path


def is_hub_id(named: Path) -> bool:
    """Whether it may be the id of a model on Hugging Face's hub, such as `Qwen/Qwen3-0.6B`."""
    return len(named.parts) == 2 and not named.is_absolute() and named.parts[0] != ".."


def model_problem(folder: Path) -> str | None:
    """Describe what is wrong with a folder, beginning with its path; None if nothing is."""
    if not folder.exists():
        hint = ""
        if is_hub_id(folder):
            hint = (
                f"; fetch it first, for example: hf download {folder} --local-dir "
                f"models/{folder.name}"
            )
        return (
            f"{folder}: no such folder. A Hugging Face folder is needed, with config.json, "
            f"tokenizer and weights{hint}"
        )
    missing = [
        name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()
    ]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        return f"{folder} is not the Hugging Face folder of a model: it has no {', '.join(missing)}"
    return None
