"""Every package that is installed is pinned to a version and to its hashes; torch from PyTorch's
own index is the one exception.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Generator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LISTS = sorted((ROOT / "requirements").glob("*.txt"), key=lambda path: path.name)
LOCKED = [path for path in LISTS if path.name != "serve-overrides.txt"]


def entries(text: str) -> dict[str, str]:
    """What stands in a list under each package's name."""
    found = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    return {
        re.split(r"[=\[ ]", entry, maxsplit=1)[0]: entry
        for entry in found
        if not entry.startswith("#")
    }


@pytest.mark.parametrize("path", LOCKED, ids=lambda path: path.name)
def test_every_package_has_a_version_and_hashes(path: Path) -> None:
    locked = entries(path.read_text())
    assert locked
    for name, entry in locked.items():
        assert re.match(r"\S+==\S+ ", entry), name
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), name


@pytest.mark.parametrize("name", ["services.txt", "serve.txt"])
def test_torch_alone_is_without_a_hash_where_it_comes_from_its_own_index(name: str) -> None:
    path = ROOT / "requirements" / name
    done = subprocess.run(
        ["awk", "-f", "requirements/without-cuda.awk", str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )  # fmt: skip
    before, after = entries(path.read_text()), entries(done.stdout)
    gone = before.keys() - after.keys()
    assert all(package.startswith(("nvidia-", "cuda-", "triton")) for package in gone)
    assert gone
    for package, entry in after.items():
        if package.startswith("torch"):
            assert "--hash" not in entry
            assert re.match(r"\S+==\S+$", entry.splitlines()[0]), "no line goes on into nothing"
        else:
            assert entry == before[package]


def test_nothing_is_installed_past_the_lists() -> None:
    for name in ("Dockerfile", "requirements/install.sh", "containers/install.sh", "Makefile"):
        for line in re.sub(r"\\\n", " ", (ROOT / name).read_text()).splitlines():
            if re.search(r"pip install\b", line) and not line.lstrip().startswith(("#", "fail")):
                checked = any(
                    word in line
                    for word in ("--require-hashes", '"$check"', "--no-deps", "/tmp/pins.txt")
                )
                assert checked, f"{name}: {line}"


def test_what_builds_the_project_is_pinned() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert needed == (ROOT / "requirements" / "build.in").read_text().split()
    assert needed[0] + " " in (ROOT / "requirements" / "build.txt").read_text()


class Index(BaseHTTPRequestHandler):
    """A package index that answers."""

    def do_HEAD(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Tell nothing."""


@pytest.fixture
def index() -> Generator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/whl/cpu/torch/"
        server.shutdown()


def chosen_torch(index: str, programs: Path, nvidia_smi: str | None) -> str:
    """What choose-torch.sh prints on a machine with this `nvidia-smi`, if any."""
    programs.mkdir()
    if nvidia_smi is not None:
        (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{nvidia_smi}\n")
        (programs / "nvidia-smi").chmod(0o755)
    (programs / "bash").symlink_to("/bin/bash")
    done = subprocess.run(
        ["/bin/bash", "requirements/choose-torch.sh", sys.executable, index],
        cwd=ROOT, env={"PATH": str(programs)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("nvidia_smi", "build"),
    [
        pytest.param(None, "cpu", id="no driver"),
        pytest.param("exit 9", "cpu", id="a driver without a GPU"),
        pytest.param("echo 'GPU 0: NVIDIA H200'", "pypi", id="a GPU"),
    ],
)
def test_the_slim_torch_is_chosen_where_there_is_no_gpu(
    index: str, tmp_path: Path, nvidia_smi: str | None, build: str
) -> None:
    assert chosen_torch(index, tmp_path / "programs", nvidia_smi) == build


def test_pypi_serves_where_the_index_of_the_slim_torch_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        closed = f"http://127.0.0.1:{port}/whl/cpu/torch/"
        assert chosen_torch(closed, tmp_path / "programs", None) == "pypi"
