"""Fill the containers' volume with the model they serve and train: `python -m
services.local_stack.model_volume`.

Without FULGURITE_MODEL it is SmolLM2-135M-Instruct, made from its package in FULGURITE_HOME; an
incomplete one, which a killed start or a full disk leaves, is made again. So is another model of
`local_services.toml` whose folder FULGURITE_MODEL names. Any other folder is checked; one that is
not there, and is named `/models/ORGANISATION/MODEL`, is fetched from Hugging Face's hub. Ends with
78 (EX_CONFIG) when a person has to change something.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from services.common.runtime.model_folder import is_hub_id
from services.local_stack.errors import ChecksumMismatch, RequirementMissing, StackError
from services.local_stack.local_services import home
from services.local_stack.model import SMALL_MODEL, fetch_model, known_model, model_folder

_BEGUN = ".cache/huggingface"
"""In a folder that a download from the hub has begun to fill."""

_LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header."""


def folder_problem(folder: Path) -> str | None:
    """Why a Hugging Face folder cannot be loaded; None if it can."""
    if not folder.is_dir():
        return "is not there"
    if not (folder / "config.json").is_file():
        return "has no config.json"
    if not any(folder.glob("tokenizer*")):
        return "has no tokenizer"
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return "has no *.safetensors"
    return next(
        (f"has a half-written {path.name}" for path in weights if not _is_whole(path)), None
    )


def _is_whole(weights: Path) -> bool:
    size = weights.stat().st_size
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < length <= size - _LENGTH_BYTES:
            return False
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return False
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return size == _LENGTH_BYTES + length + max(ends, default=0)


def make_model(name: str = SMALL_MODEL) -> Path:
    """Make a model's folder, and make it again if it is incomplete. Raises StackError."""
    try:
        folder = model_folder(name)
    except ChecksumMismatch:
        # A killed download left part of a file: fetch it again, once.
        shutil.rmtree(home() / "cache")
        folder = model_folder(name)
    found = folder_problem(folder)
    if found is not None:
        _print(f"{folder} {found}: it is made again")
        shutil.rmtree(folder)
        folder = model_folder(name)
    return folder


def fetch_missing(folder: Path) -> None:
    """Fetch the model that a folder of the volume is named after. Raises RequirementMissing."""
    begun = (folder / _BEGUN).is_dir() and folder_problem(folder) is not None
    if (folder.exists() and not begun) or not folder.is_relative_to(home()):
        return
    name = folder.relative_to(home())
    if is_hub_id(name) and name.parts[0] != "models":
        _print(f"{folder} is not there, or not complete: fetching {name} from Hugging Face's hub")
        fetch_model(str(name), folder)


def _print(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> int:
    """Run the command; the exit status."""
    named = os.environ.get("FULGURITE_MODEL")
    known = known_model(Path(named)) if named else SMALL_MODEL
    if named and known is None:
        fetching = ""
        try:
            fetch_missing(Path(named))
        except RequirementMissing as error:
            fetching = f" ({error})"
        found = folder_problem(Path(named))
        if found is not None:
            _print(
                f"FULGURITE_MODEL={named}: this folder {found}{fetching}. Copy a Hugging Face "
                "folder (config.json, tokenizer, *.safetensors) into the volume `models`, which is "
                "/models here, or leave FULGURITE_MODEL empty for the small model."
            )
            return os.EX_CONFIG
        _print(f"the model is {named}")
        return 0
    try:
        _print(f"the model is {make_model(known or SMALL_MODEL)}")
    except (StackError, OSError) as error:
        _print(
            f"the model could not be made: {error}\nIts package comes from the package index: "
            "is that reachable from containers?"
        )
        return os.EX_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
