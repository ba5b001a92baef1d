"""What several processes need is fetched by one of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.local_stack.local_services import one_at_a_time

ENTER = """
import pathlib, sys
from services.local_stack.local_services import one_at_a_time
with one_at_a_time("thing"):
    found = pathlib.Path(sys.argv[1])
    known = found.read_text() if found.exists() else ""
    found.write_text(known + "x")
"""


def test_processes_enter_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULGURITE_HOME", str(tmp_path))
    counted = tmp_path / "counted"
    command = [sys.executable, "-c", ENTER, str(counted)]
    with one_at_a_time("thing"):
        waiting = [subprocess.Popen(command) for _ in range(4)]
        with one_at_a_time("another"):
            assert not counted.exists()
    assert [process.wait(60) for process in waiting] == [0] * 4
    assert counted.read_text() == "xxxx"
