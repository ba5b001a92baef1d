"""The processes that compute a run's rewards: a worker a function, and a judge a model."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from services.common.processes.fork_server import ForkServer, Program
from services.common.runtime.clock import now_ms
from services.common.runtime.process_secrets import without_keys
from services.runner.errors import RunnerError, first_error
from services.runner.options import JUDGE, RunOptions
from services.runner.settings import RunnerSettings

_CLOCK_MARGIN_MS = 10 * 60 * 1000
"""Workers read `episodes` from so long before the start of the run on: clocks may disagree."""


async def run_reward_workers(
    fork_server: ForkServer, options: RunOptions, settings: RunnerSettings
) -> None:
    """Run a reward worker for each function and a judge for each model, until cancelled.

    They read no episode that was written long before this call. Raises RunnerError if one of them
    ends.
    """
    since_ms = now_ms() - _CLOCK_MARGIN_MS
    try:
        async with asyncio.TaskGroup() as workers:
            for name, reference in options.rewards.items():
                workers.create_task(
                    _run_worker(fork_server, options, settings, name, reference, since_ms)
                )
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors


async def _run_worker(
    fork_server: ForkServer,
    options: RunOptions,
    settings: RunnerSettings,
    name: str,
    reference: str,
    since_ms: int,
) -> None:
    folder = settings.data_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"reward-{options.run_id}-{name}.log"
    # -P: the working directory may hold another package named `services`.
    argv = (
        sys.executable,
        "-P",
        "-m",
        *_module(reference, options.rubric),
        "--name",
        name,
        "--run-id",
        options.run_id,
        "--since-ms",
        str(since_ms),
    )
    # A function may call a model through the gateway, but gets no key to declare rollouts.
    environment = {
        **without_keys(os.environ, frozenset({"FULGURITE_API_KEYS"})),
        "FULGURITE_GATEWAY_URL": settings.gateway_url,
        # The port of this environment's own service: several workers could not share it.
        "FULGURITE_METRICS_PORT": "0",
    }
    with path.open("ab") as log:
        result = await fork_server.run(
            Program(argv), environment=environment, cwd=Path.cwd(), output=log
        )
    tail = path.read_text(errors="replace").strip().splitlines()[-5:]
    raise RunnerError(
        f"the worker of the reward {name!r} ended with exit code {result.exit_code}. Its last "
        f"lines in {path}:\n" + "\n".join(tail)
    )


def _module(reference: str, rubric: Path | None) -> tuple[str, ...]:
    """The module of a reward's worker, and its arguments."""
    if not reference.startswith(JUDGE):
        return ("services.rewards.worker", "--reward", reference)
    return (
        "services.judge.main",
        "--model",
        reference.removeprefix(JUDGE),
        *(("--rubric", str(rubric)) if rubric else ()),
    )
