"""How a run starts its reward workers and judges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from services.common.processes.fork_server import ForkServer, ProcessResult, Program
from services.common.runtime.clock import now_ms
from services.runner.errors import RunnerError
from services.runner.options import RunOptions
from services.runner.reward_workers import run_reward_workers
from services.runner.settings import RunnerSettings


class Recorded(ForkServer):
    """Notes what it is asked to run, which ends at once."""

    def __init__(self) -> None:
        self.argv: list[tuple[str, ...]] = []
        self.environments: list[Mapping[str, str]] = []

    async def run(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, program: Program, *, environment: Mapping[str, str], **_: Any
    ) -> ProcessResult:
        self.argv.append(program.argv)
        self.environments.append(environment)
        return ProcessResult(1, False, "", "", 0.0)


@pytest.mark.parametrize("reference", ["rewards.py:score", "judge:big"])
async def test_a_worker_reads_from_the_runs_start_on_and_wants_no_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.setenv("FULGURITE_METRICS_PORT", "9103")
    server = Recorded()
    options = RunOptions(
        tasks=Path("t"), command=("agent",), run_id="r", rewards={"score": reference}
    )
    before = now_ms()
    with pytest.raises(RunnerError, match="ended with exit code 1"):
        await run_reward_workers(server, options, RunnerSettings(data_dir=tmp_path))
    [argv] = server.argv
    since = int(argv[argv.index("--since-ms") + 1])
    margin = 10 * 60 * 1000
    assert before - margin <= since <= now_ms() - margin
    assert [one["FULGURITE_METRICS_PORT"] for one in server.environments] == ["0"]
