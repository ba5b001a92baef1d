"""A reward function that hangs while its worker is killed: no process of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.services.common.processes import programs

ROOT = Path(__file__).parents[3]

WORKER = """
import asyncio, sys
from services.rewards.sandbox import Limits, Sandbox
from tests.synthetic import make_call, make_declared, make_status
from fulgurite.episodes.stitching import stitch

async def main():
    sandbox = Sandbox(sys.argv[1], "score", Limits(processes=1, timeout_s=600.0, memory_mb=0))
    await sandbox.score(stitch([make_declared(), make_call(), make_status()]))

if __name__ == "__main__":
    asyncio.run(main())
"""

THREADS = """
import asyncio, sys, threading, time
from services.rewards.sandbox import Limits, Sandbox
from tests.synthetic import make_call, make_declared, make_status
from fulgurite.episodes.stitching import stitch

def main():
    episode = stitch([make_declared(), make_call(), make_status()])
    made = []
    def make():
        sandbox = Sandbox(sys.argv[1], "pid", Limits(processes=1, timeout_s=60.0, memory_mb=0))
        made.append((sandbox, asyncio.run(sandbox.score(episode))))
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    [(sandbox, before)] = made
    time.sleep(1.0)
    print(asyncio.run(sandbox.score(episode)) == before)
    sandbox.close()

if __name__ == "__main__":
    main()
"""

HANGS = """
import os, time
def hangs(episode):
    with open(f"{__file__}.pid", "w") as file:
        print(os.getpid(), file=file)
    time.sleep(600)
"""
IMPORT_HANGS = """
import os, time
with open(f"{__file__}.pid", "w") as file:
    print(os.getpid(), file=file)
time.sleep(600)
"""


@pytest.mark.parametrize("code", [HANGS, IMPORT_HANGS], ids=["function", "import"])
@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["worker", "its process group"])
def test_a_function_that_hangs_ends_with_its_worker(
    tmp_path: Path, code: str, kill: Callable[[int, int], None]
) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "rewards.py").write_text(code)
    worker = subprocess.Popen(
        [sys.executable, str(tmp_path / "worker.py"), f"{tmp_path}/rewards.py:hangs"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    below: list[int] = []
    try:
        pid = int(programs.wait_for_line(tmp_path / "rewards.py.pid"))
        below = programs.descendants(worker.pid)
        assert pid in below
        kill(worker.pid, signal.SIGKILL)
    finally:
        worker.kill()
        worker.wait()
        left = [process for process in below if not programs.is_soon_dead(process)]
        for process in left:
            os.kill(process, signal.SIGKILL)
    assert not left


def test_the_processes_outlive_the_thread_that_made_the_sandbox(tmp_path: Path) -> None:
    (tmp_path / "threads.py").write_text(THREADS)
    (tmp_path / "rewards.py").write_text("import os\ndef process(episode): return os.getpid()\n")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "threads.py"), f"{tmp_path}/rewards.py:process"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)
