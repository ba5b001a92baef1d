"""A process that ends when its parent does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.processes import parent_death
from tests.services.common.processes import programs

ROOT = Path(__file__).parents[4]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")


def _start(source: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", source], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    child = (
        f"import os, time; from {parent_death.__name__} import end_with_parent; os.setsid(); "
        f"end_with_parent(); print(os.getpid(), file=open({str(path)!r}, 'w')); time.sleep(600)"
    )
    parent = _start(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    pid = int(programs.wait_for_line(path))
    assert programs.is_alive(pid)
    parent.kill()
    parent.wait()
    assert programs.is_soon_dead(pid)


def test_it_ends_at_once_if_its_parent_has_ended_already() -> None:
    source = f"from {parent_death.__name__} import end_with_parent; end_with_parent(2**22 + 1)"
    assert _start(source).wait() == -signal.SIGKILL
