"""Which Docker engine the test runs on: the machine's own if there is one, else one that it starts
and takes away (`engine.sh`).

On an engine of its own no image can be pulled where no registry is reachable: there the base images
are made (`stand_ins/`). What stand-ins show is the wiring, not the official images' own behaviour.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

from services.common.processes.program_path import own_programs_first

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_STARTED = time.monotonic()
_NEEDED_GIB = 20
"""PyTorch with CUDA, which PyPI gives, once; vLLM's and the learner's packages on top of it."""


class NoEngine(Exception):
    """No container can run here; the message says why."""


def say(text: str) -> None:
    """A line of progress; `make test-compose` lets it through."""
    seconds = int(time.monotonic() - _STARTED)
    sys.stderr.write(f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}\n")
    sys.stderr.flush()


def compose_command() -> list[str] | None:
    """A Compose binary: DOCKER_COMPOSE, the one beside this Python, or Docker's plug-in."""
    named = os.environ.get("DOCKER_COMPOSE")
    if named:
        return [named]
    standalone = shutil.which("docker-compose", path=own_programs_first())
    if standalone:
        return [standalone]
    docker = shutil.which("docker")
    if (
        docker
        and subprocess.run(
            [docker, "compose", "version"], capture_output=True, check=False
        ).returncode
        == 0
    ):
        return [docker, "compose"]
    return None


def base_images() -> dict[str, str]:
    """Those that the compose files and Dockerfile name, profile gpu's aside, by what they are."""
    compose = "".join(
        (ROOT / name).read_text() for name in ("docker-compose.yml", "docker-compose.ha.yml")
    )
    dockerfile = (ROOT / "Dockerfile").read_text()
    named = {
        "python": re.search(r"^ARG PYTHON_IMAGE=(\S+)", dockerfile, re.MULTILINE),
        "kafka": re.search(r"image: (apache/kafka\S+)", compose),
        "redis": re.search(r"image: (redis\S+)", compose),
        "balancer": re.search(r"image: (haproxy\S+)", compose),
    }
    return {name: found[1] for name, found in named.items() if found}


@contextlib.contextmanager
def engine() -> Generator[dict[str, str]]:
    """The environment in which Docker's clients find an engine that has the base images. Raises
    NoEngine.
    """
    if os.environ.get("DOCKER_HOST") or _answers({}):
        with _images({}):
            yield {}
        return
    free_gib = shutil.disk_usage(tempfile.gettempdir()).free >> 30
    if free_gib < _NEEDED_GIB:
        raise NoEngine(
            f"images take {_NEEDED_GIB} GiB of disk, {free_gib} are free in "
            f"{tempfile.gettempdir()}: free some, or set TMPDIR"
        )
    folder = Path(tempfile.mkdtemp(prefix="fg-docker-"))
    say("no Docker engine answers: starting one of the test's own")
    done = subprocess.run(
        [HERE / "engine.sh", "start", folder], capture_output=True, text=True, check=False
    )
    try:
        if done.returncode != 0:
            raise NoEngine((done.stderr or done.stdout).strip().splitlines()[-1])
        environment = {
            "DOCKER_HOST": f"unix://{folder}/socket",
            "DOCKER_CONFIG": str(folder / "config"),
        }
        # The classic builder: it shares layers only between builds that do not run at once.
        environment |= {"DOCKER_BUILDKIT": "0", "COMPOSE_PARALLEL_LIMIT": "1"}
        with _images(environment):
            yield environment
    finally:
        say("taking the engine away")
        subprocess.run([HERE / "engine.sh", "stop", folder], check=False)


@contextlib.contextmanager
def _images(environment: dict[str, str]) -> Generator[None]:
    names = base_images()
    lacking = [name for name in names.values() if not _has(name, environment)]
    if lacking and any(_docker(["pull", "--quiet", name], environment) != 0 for name in lacking):
        say(f"no registry gives {', '.join(lacking)}: making stand-ins")
        path = {"PATH": own_programs_first()}
        scratch = tempfile.mkdtemp(prefix="fg-images-")
        argv = [
            HERE / "stand_ins" / "build.sh",
            scratch,
            names["python"],
            names["kafka"],
            names["redis"],
            names["balancer"],
        ]
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment, **path},
        )
        shutil.rmtree(scratch, ignore_errors=True)
        if done.returncode != 0:
            raise NoEngine(
                "base images can neither be pulled nor made: "
                f"{(done.stderr or done.stdout).strip()[-500:]}"
            )
    yield


def _answers(environment: dict[str, str]) -> bool:
    return shutil.which("docker") is not None and _docker(["version"], environment) == 0


def _has(image: str, environment: dict[str, str]) -> bool:
    return _docker(["image", "inspect", image], environment) == 0


def _docker(arguments: list[str], environment: dict[str, str]) -> int:
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, check=False, env={**os.environ, **environment}
    )
    return done.returncode
