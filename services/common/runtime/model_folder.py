"""Checks that a folder is a model that can be trained and served, without loading it."""

from __future__ import annotations

from pathlib import Path


def model_problem(folder: Path) -> str | None:
    """Describe what is wrong with a folder, beginning with its path; None if nothing is."""
    if not folder.exists():
        hint = ""
        if len(folder.parts) == 2 and not folder.is_absolute():
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
