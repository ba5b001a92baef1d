"""Makes a Python environment for each agent whose packages are not ours.

An environment is named by the hash of its pins: it is made once, and anew when the pins change.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from services.local_stack.errors import RequirementMissing
from services.local_stack.example import Example
from services.local_stack.local_services import home, one_at_a_time, project_folder

_DONE = ".complete"
_TOOLS = project_folder() / ".fulgurite" / "uv" / "bin"


def environment_folder(name: str, pins: Sequence[Path]) -> Path:
    """Where the environment of these files lies, made or not; `name` may have slashes."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    content = b"".join(file.read_bytes() for file in pins) + version.encode()
    return home() / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"


def make_once(folder: Path, install: Callable[[], None]) -> None:
    """Install an environment if it is not there, and whole; other processes wait for it."""
    with one_at_a_time(folder.name):
        if not (folder / _DONE).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            install()
            (folder / _DONE).touch()


def example_environment(example: Example) -> Path | None:
    """The environment of an example's agent, installed if it is not; returns its folder, or None if
    the example needs none of its own. Raises RequirementMissing.
    """
    if example.requirements is None:
        return None
    requirements, sources = example.requirements, example.source_distributions
    pins = [requirements, *filter(None, [sources])]
    folder = environment_folder(f"examples/{requirements.parent.name}", pins)

    def install() -> None:
        install_python(requirements, folder)
        if sources is not None:
            unpack_sources(sources, folder)

    make_once(folder, install)
    return folder


def install_python(requirements: Path, folder: Path) -> None:
    """Make a Python environment. The requirements name every package: what is left out of them is
    not installed. Raises RequirementMissing.
    """
    uv = shutil.which("uv") or str(_TOOLS / "uv")
    _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
    install = [uv, "pip", "install", "--quiet", "--no-deps", "--python", str(folder)]
    _run([*install, "--requirement", str(requirements)])


def unpack_sources(pins: Path, folder: Path) -> None:
    """Download source distributions, and unpack them in the environment's folder `sdists`. Raises
    RequirementMissing.
    """
    python = _TOOLS / "python"
    download = [str(python) if python.exists() else "python3", "-m", "pip", "download", "--quiet"]
    options = ["--no-deps", "--no-binary", ":all:", "--dest", str(folder / "sdists")]
    _run([*download, *options, "--requirement", str(pins)])
    for archive in (folder / "sdists").glob("*.tar.gz"):
        with tarfile.open(archive) as packed:
            packed.extractall(folder / "sdists", filter="data")


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-2000:].strip()
        raise RequirementMissing(f"`{' '.join(argv)}` failed: {said}")
