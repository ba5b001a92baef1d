"""The gateway gives way to a model server where the system can do that, and runs anyway elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services.local_stack.batch_scheduling import batch_command

_PRINT_POLICY = """
import os, threading
thread = threading.Thread(target=lambda: print(os.sched_getscheduler(threading.get_native_id())))
thread.start()
thread.join()
"""


@pytest.mark.skipif(shutil.which("chrt") is None, reason="needs chrt (util-linux)")
def test_a_program_and_its_threads_run_under_sched_batch() -> None:
    done = subprocess.run(
        [*batch_command(), sys.executable, "-c", _PRINT_POLICY], capture_output=True, check=True
    )
    assert int(done.stdout) == os.SCHED_BATCH


@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexit 1\n"])
def test_where_it_cannot_nothing_is_put_before_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    if script is not None:
        (tmp_path / "chrt").write_text(script)
        (tmp_path / "chrt").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert batch_command() == []
