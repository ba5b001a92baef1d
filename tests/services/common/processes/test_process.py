"""A child process: its log, its environment, and its end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from services.common.processes.groups import session_members
from services.common.processes.process import ChildProcess, describe_exit
from tests.services.common.processes.programs import IGNORES_SIGTERM, PARENT, SLEEP, eventually


def child(folder: Path, code: str) -> ChildProcess:
    """Started, and up if the program says so."""
    log = folder / "logs" / "child.log"
    started = ChildProcess([sys.executable, "-c", code], log, env={"A": "b"}, cwd=folder)
    assert "'up'" not in code or eventually(lambda: "up" in log.read_text())
    return started


def test_it_leads_a_session_with_the_environment_and_the_folder_it_was_given(
    tmp_path: Path,
) -> None:
    code = "import os; print(os.getsid(0) == os.getpid(), os.environ['A'], 'PATH' in os.environ, os.getcwd())"
    process = child(tmp_path, code)
    assert process.wait(30) == 0
    assert process.log.read_text() == f"True b False {tmp_path}\n"


def test_leaving_the_context_ends_it(tmp_path: Path) -> None:
    with child(tmp_path, SLEEP) as process:
        assert (process.is_running, process.wait(0)) == (True, None)
    assert (process.is_running, process.returncode) == (False, -signal.SIGTERM)
    process.end()


def test_a_stopped_process_reacts_to_sigterm(tmp_path: Path) -> None:
    process = child(tmp_path, SLEEP)
    process.signal_session(signal.SIGSTOP)
    process.end(30)
    assert process.returncode == -signal.SIGTERM


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process = child(tmp_path, IGNORES_SIGTERM)
    process.end(grace_s=0.1)
    assert process.returncode == -signal.SIGKILL


def test_children_of_its_session_die_with_it(tmp_path: Path) -> None:
    process = child(tmp_path, PARENT)
    assert eventually(lambda: len(session_members(process.pid)) == 2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    assert eventually(lambda: session_members(process.pid) == [])


def test_the_exit_is_reported_once(tmp_path: Path) -> None:
    codes: list[int | None] = []
    reported = threading.Event()

    def on_exit(process: ChildProcess) -> None:
        codes.append(process.returncode)
        reported.set()

    ChildProcess(
        [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log", env={}, on_exit=on_exit
    )
    assert reported.wait(30)
    assert codes == [3]


def test_its_last_error_and_log_tail_are_of_this_start(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "child.log").write_text("ValueError: of yesterday\n")
    quiet = child(tmp_path, "pass")
    quiet.wait(30)
    assert quiet.last_error() == ""
    loud = child(tmp_path, """print('{"level": "info"}\\nOSError: disk full')""")
    loud.wait(30)
    assert loud.last_error() == "OSError: disk full"
    assert loud.log_tail() == f"\n    OSError: disk full\n    ({loud.log})"


@pytest.mark.parametrize(
    ("code", "described"),
    [
        (3, "ended with 3"),
        (-9, "was ended by SIGKILL (by a person, or by the system for want of memory)"),
        (-15, "was ended by SIGTERM"),
        (-99, "was ended by signal 99"),
    ],
)
def test_an_exit_code_is_described(code: int, described: str) -> None:
    assert describe_exit(code) == described
