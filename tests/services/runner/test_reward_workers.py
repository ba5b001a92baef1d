"""How a run starts its reward workers and judges."""

from __future__ import annotations

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

    async def run(self, program: Program, **_: Any) -> ProcessResult:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.argv.append(program.argv)
        return ProcessResult(1, False, "", "", 0.0)


@pytest.mark.parametrize("reference", ["rewards.py:score", "judge:big"])
async def test_a_worker_reads_what_is_written_from_the_runs_start_on(
    tmp_path: Path, reference: str
) -> None:
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
