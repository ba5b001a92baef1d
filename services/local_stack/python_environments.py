"""Makes a Python environment for each agent whose packages are not ours.

An environment is named by the hash of its pins: it is made once, and anew when the pins change.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from services.local_stack.errors import RequirementMissing
from services.local_stack.local_services import home, project_folder

_DONE = ".complete"


def environment_folder(name: str, pins: Sequence[Path]) -> Path:
    """Where the environment of these files lies, made or not; `name` may have slashes."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    content = b"".join(file.read_bytes() for file in pins) + version.encode()
    return home() / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"


def is_complete(folder: Path) -> bool:
    """Whether the environment is there, and whole."""
    return (folder / _DONE).is_file()


def python_environment(name: str, requirements: Path) -> Path:
    """The environment with these packages, installed if it is not; returns its folder.

    The requirements name every package: what is left out of them is not installed. Raises
    RequirementMissing.
    """
    folder = environment_folder(name, [requirements])
    if not is_complete(folder):
        install_python(requirements, folder)
        mark_complete(folder)
    return folder


def install_python(requirements: Path, folder: Path) -> None:
    """Make the environment anew. Raises RequirementMissing."""
    shutil.rmtree(folder, ignore_errors=True)
    uv = shutil.which("uv") or str(project_folder() / ".fulgurite" / "uv" / "bin" / "uv")
    install = ["pip", "install", "--quiet", "--no-deps", "--python", str(folder)]
    for arguments in (
        ["venv", "--quiet", "--python", sys.executable, str(folder)],
        [*install, "--requirement", str(requirements)],
    ):
        done = subprocess.run([uv, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RequirementMissing(
                f"{requirements} cannot be installed: {(done.stdout + done.stderr)[-2000:].strip()}"
            )


def mark_complete(folder: Path) -> None:
    """Note that nothing is missing."""
    (folder / _DONE).touch()
