"""Supervised real processes: when they are ready, restarted, given up, and how they are stopped."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from services.common.processes.errors import ProcessExited, ProcessNotReady
from services.common.processes.supervisor import ProcessSpec, Supervisor
from tests.services.common.processes.programs import IGNORES_SIGTERM, SLEEP, eventually


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor() as started:
        yield started


def spec(
    tmp_path: Path,
    code: str,
    *,
    restart: bool = False,
    ready_timeout_s: float = 30,
    stop_timeout_s: float = 20,
) -> ProcessSpec:
    log = tmp_path / "process.log"
    return ProcessSpec(
        name="process",
        argv=[sys.executable, "-c", code],
        log=log,
        ready=lambda: log.is_file() and "up" in log.read_text(),
        restart=restart,
        ready_timeout_s=ready_timeout_s,
        stop_timeout_s=stop_timeout_s,
    )


def test_ready_then_stopped(supervisor: Supervisor, tmp_path: Path) -> None:
    process = supervisor.add(spec(tmp_path, SLEEP))
    assert (process.pid, process.is_ready(), process.wait(0)) == (None, False, None)
    process.start().wait_ready()
    assert process.is_ready()
    process.stop()
    process.stop()
    assert (process.returncode, process.pid, process.is_ready()) == (-signal.SIGTERM, None, False)
    process.start().wait_ready()
    assert process.is_ready()


def test_keys_of_the_environment_are_not_inherited(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULGURITE_ADMIN_KEY", "sk-outer")
    monkeypatch.setenv("FULGURITE_POLICY", "outer")
    show = (
        "import os; print('admin', os.environ.get('FULGURITE_ADMIN_KEY'), 'policy', "
        "os.environ['FULGURITE_POLICY'], "
        "flush=True);"
    )
    process = supervisor.start(spec(tmp_path, show + SLEEP)).wait_ready()
    assert "admin None policy outer" in process.spec.log.read_text()


def test_a_process_that_ignores_sigterm_is_killed(supervisor: Supervisor, tmp_path: Path) -> None:
    process = supervisor.start(spec(tmp_path, IGNORES_SIGTERM, stop_timeout_s=0.2)).wait_ready()
    process.stop()
    assert process.returncode == -signal.SIGKILL


def test_a_failed_start_is_reported_with_the_log(supervisor: Supervisor, tmp_path: Path) -> None:
    process = supervisor.start(spec(tmp_path, "import sys; sys.exit('no such port')", restart=True))
    with pytest.raises(ProcessExited, match="no such port"):
        process.wait_ready()
    assert process.restarts == 0


def test_a_process_that_never_gets_ready_is_reported(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    with pytest.raises(ProcessNotReady):
        supervisor.start(
            spec(tmp_path, "import time; time.sleep(600)", ready_timeout_s=0.3)
        ).wait_ready()


def test_a_crash_is_reported_and_the_process_restarted(tmp_path: Path) -> None:
    ended: list[int] = []
    with Supervisor(lambda _, code: ended.append(code)) as supervisor:
        process = supervisor.start(spec(tmp_path, SLEEP, restart=True)).wait_ready()
        first = process.pid
        process.kill()
        assert eventually(lambda: process.pid is not None and process.pid != first)
        process.wait_ready()
        assert (ended, process.restarts) == ([-signal.SIGKILL], 1)
    assert (process.pid, process.will_restart()) == (None, False)


def test_without_a_restart_rule_a_crashed_process_stays_down(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    process = supervisor.start(spec(tmp_path, SLEEP)).wait_ready()
    process.kill()
    assert (process.wait(5), process.pid, process.will_restart()) == (-signal.SIGKILL, None, False)


def test_a_session_is_stopped_and_continued(supervisor: Supervisor, tmp_path: Path) -> None:
    process = supervisor.start(spec(tmp_path, SLEEP)).wait_ready()
    assert process.pid is not None
    process.signal_session(signal.SIGSTOP)
    assert eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    process.signal_session(signal.SIGCONT)
    assert eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING)


PULSING = """
import os, pathlib, sys, time
time.sleep(float(sys.argv[1]) if sys.argv[1:] else 0)
pathlib.Path(os.environ["FULGURITE_PULSE"]).touch()
time.sleep(600)
"""


def test_a_process_is_ready_at_its_first_pulse_and_not_at_an_older_one(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    pulse = tmp_path / "run" / "pulse"
    made = msgspec.structs.replace(spec(tmp_path, PULSING, restart=True), ready=None, pulse=pulse)
    process = supervisor.start(made).wait_ready()
    assert pulse.exists()
    process.stop()
    idle = supervisor.start(
        msgspec.structs.replace(made, argv=[sys.executable, "-c", "import time; time.sleep(600)"])
    )
    assert not pulse.exists()
    assert not idle.is_ready()


def test_an_end_before_ready_is_reported_with_the_last_error(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    code = (
        "import json; print(json.dumps({'level': 'error', 'event': 'cannot start', "
        "'error': "
        "'no model in /nope'})); raise SystemExit(78)"
    )
    made = msgspec.structs.replace(
        spec(tmp_path, code, restart=True), ready=None, pulse=tmp_path / "pulse"
    )
    with pytest.raises(
        ProcessExited,
        match="process ended with 78 before it was ready: cannot start: no model in /nope\n",
    ):
        supervisor.start(made).wait_ready()


def test_another_program_that_answers_does_not_make_a_dead_process_ready(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    """Another program on its port."""
    made = msgspec.structs.replace(
        spec(tmp_path, "raise OSError(98, 'address already in use')", restart=True),
        ready=lambda: False,
    )
    process = supervisor.start(made)
    process.wait(30)
    assert not process.is_ready()
    with pytest.raises(ProcessExited, match="address already in use"):
        process.wait_ready()


def test_errors_of_an_earlier_start_are_not_reported(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    (tmp_path / "process.log").write_text("ValueError: of yesterday\n")
    with pytest.raises(ProcessExited) as raised:
        supervisor.start(
            msgspec.structs.replace(spec(tmp_path, "import os; os._exit(3)"), ready=lambda: False)
        ).wait_ready()
    assert "yesterday" not in str(raised.value)
    assert "ended with 3 before it was ready: its log has no error" in str(raised.value)


def test_after_too_many_quick_ends_a_process_is_given_up(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    code = (
        f"import pathlib, time; flag = pathlib.Path({str(flag)!r}); print('up', "
        "flush=True); "
        "flag.exists() "
        "or "
        "time.sleep(600)"
    )
    again: list[bool] = []
    with Supervisor(lambda process, _: again.append(process.will_restart())) as supervisor:
        made = msgspec.structs.replace(spec(tmp_path, code, restart=True), max_restarts=2)
        process = supervisor.start(made).wait_ready()
        flag.touch()
        process.kill()
        assert eventually(lambda: again == [True, True, False])
        assert process.pid is None
