"""agentlightning's server under the same load: from PyPI, in an environment of its own that is
thrown away.

It proxies `/proxy/rollout/{id}/…/openai/v1/chat/completions` with FastAPI and httpx, refuses
streams and keeps what it recorded in its own memory: nothing is written anywhere. It asks for
Python 3.12; where there is none, its server runs on the Python at hand, which is told.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from benchmarks.gateway_parts import (
    Served,
    bench_folder,
    gateway,
    kafka,
    load,
    measured,
    passthrough,
    process,
    stub,
    wait,
)
from services.local_stack.local_services import project_folder
from services.local_stack.ports import free_port

VERSION = "1.0.2"
_SERVER_NEEDS = (
    "fastapi",
    "httpx",
    "httpx-retries",
    "hydra-core==1.3.2",
    "omegaconf==2.3.0",
    "pydantic",
    "structlog",
    "uvicorn",
    "pyyaml",
)
_EXTRAS = ("uvloop", "httptools")
"""What uvicorn takes if it finds it; the other two have them too."""


def compare(
    given: argparse.Namespace, table: Callable[[str, list[str], list[list[Any]]], None]
) -> None:
    """Requests a second, of CPU and of the wall: pass-through, agentlightning, ours."""
    prompt = ("--prompt-tokens", str(given.prompt_tokens))
    with (
        bench_folder() as folder,
        kafka(folder) as cluster,
        stub(*prompt) as upstream,
        ExitStack() as stack,
    ):
        python, version = environment(given.peer or folder / "peer")
        sides = [
            stack.enter_context(passthrough(upstream)),
            stack.enter_context(peer(python, upstream, folder)),
            stack.enter_context(gateway(upstream, cluster)),
        ]
        runs: dict[str, list[dict[str, Any]]] = {served.name: [] for served in sides}
        for served in sides:
            load(served, *prompt, "--seconds", "2")
        for _ in range(given.rounds):
            for served in sides:
                runs[served.name].append(measured(served, *prompt, "--seconds", str(given.seconds)))
        memory = [served.rss_mib() for served in sides]
    rows: list[list[Any]] = []
    ours = _rate(runs["gateway"], "cpu_s")
    for (name, told), resident in zip(runs.items(), memory, strict=True):
        failed = sum(run["failed"] for run in told)
        rows.append(
            [
                name,
                _rate(told, "cpu_s"),
                ours / _rate(told, "cpu_s"),
                _rate(told, "seconds"),
                resident,
                failed,
            ]
        )
    columns = [
        "",
        "requests / CPU s",
        "gateway is so many times as fast",
        "requests / s",
        "MiB at the end",
        "failed",
    ]
    table(
        f"Beside agentlightning {VERSION} (on Python {version}), prompts of "
        f"{given.prompt_tokens} tokens",
        columns,
        rows,
    )


def _rate(runs: list[dict[str, Any]], unit: str) -> float:
    return statistics.median(run["done"] / run[unit] for run in runs)


def environment(folder: Path) -> tuple[Path, str]:
    """A Python that has agentlightning, and that Python's version; made if it is not there."""
    uv = shutil.which("uv") or str(project_folder() / ".fulgurite" / "uv" / "bin" / "uv")
    python = folder / "bin" / "python"
    wanted = _python312() or sys.executable
    if not python.exists():
        _run(uv, "venv", "--quiet", "--seed", "--python", wanted, str(folder))
        _run(uv, "pip", "install", "--quiet", "--python", str(python), *_SERVER_NEEDS, *_EXTRAS)
        _run(
            str(python),
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--ignore-requires-python",
            f"agentlightning=={VERSION}",
        )
    version = subprocess.run(
        [python, "-c", "import platform; print(platform.python_version())"],
        capture_output=True,
        text=True,
        check=True,
    )
    return python, version.stdout.strip()


def _python312() -> str | None:
    """One that runs: a version manager's stand-in may not."""
    found = shutil.which("python3.12")
    return (
        found
        if found
        and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0
        else None
    )


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)


@contextmanager
def peer(python: Path, upstream: str, folder: Path) -> Generator[Served]:
    """Its server with one rollout and one model server; its log, a line a call, goes to
    the folder.
    """
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    argv = [
        str(python),
        "-m",
        "agentlightning.server",
        "host=127.0.0.1",
        f"port={port}",
        "default_proxy.model_name=policy",
    ]
    with process(
        [*argv, f"hydra.run.dir={folder}", "hydra.output_subdir=null"], quiet=True
    ) as running:
        wait(base)
        _post(
            f"{base}/api/models", [{"model": "policy", "endpoint": f"{upstream}/v1", "version": 1}]
        )
        _post(f"{base}/api/rollouts", [{"rollout_id": "r", "input": {}, "is_train": True}])
        yield Served(
            f"agentlightning {VERSION}",
            f"{base}/proxy/rollout/r/attempt/0/mode/train/openai",
            running.pid,
        )


def _post(url: str, body: Any) -> None:
    request = Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request, timeout=10):
        pass
