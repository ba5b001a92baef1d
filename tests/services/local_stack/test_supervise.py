"""Supervision with real processes: ready, stopped, restarted, and none left behind however the
supervisor ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from services.local_stack import watchdog
from services.local_stack.errors import ServiceExited, ServiceNotReady
from services.local_stack.supervise import ProcessSpec, Restart, State, Supervisor, how_it_ended
from services.local_stack.watchdog import session_members

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('up', "
    "flush=True); time.sleep(600)"
)
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
print("up", child.pid, flush=True)
time.sleep(600)
"""
ABANDONED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts it in the background has it ignored
from pathlib import Path
from services.local_stack.supervise import ProcessSpec, Supervisor
supervisor = Supervisor()
started = supervisor.start(ProcessSpec(name="parent", argv=[sys.executable, "-c", sys.argv[1]], log=Path(sys.argv[2])))
print(started.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor() as started:
        yield started


def spec(
    tmp_path: Path,
    code: str,
    *,
    restart: Restart = Restart.never,
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


def eventually(holds: Callable[[], bool]) -> bool:
    """Within half a minute: the machine may be busy."""
    deadline = time.monotonic() + 30
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_ready_then_stopped(supervisor: Supervisor, tmp_path: Path) -> None:
    process = supervisor.add(spec(tmp_path, SLEEP))
    assert process.state is State.idle
    process.start().wait_ready()
    assert process.state is State.ready
    process.stop()
    process.stop()
    assert (process.state, process.returncode, process.pid) == (State.idle, -signal.SIGTERM, None)
    process.start().wait_ready()
    assert process.state is State.ready


def test_keys_of_the_surroundings_are_not_inherited(
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


def test_one_that_ignores_the_request_is_killed(supervisor: Supervisor, tmp_path: Path) -> None:
    process = supervisor.start(spec(tmp_path, STUBBORN, stop_timeout_s=0.2)).wait_ready()
    process.stop()
    assert process.returncode == -signal.SIGKILL


def test_a_failure_to_start_is_told_with_the_log(supervisor: Supervisor, tmp_path: Path) -> None:
    process = supervisor.start(
        spec(tmp_path, "import sys; sys.exit('no such port')", restart=Restart.always)
    )
    with pytest.raises(ServiceExited, match="no such port"):
        process.wait_ready()
    assert process.restarts == 0


def test_one_that_never_gets_ready_is_told(supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(ServiceNotReady):
        supervisor.start(
            spec(tmp_path, "import time; time.sleep(600)", ready_timeout_s=0.3)
        ).wait_ready()


def test_a_crash_is_told_and_mended(tmp_path: Path) -> None:
    ended: list[int] = []
    with Supervisor(lambda _, code: ended.append(code)) as supervisor:
        process = supervisor.start(spec(tmp_path, SLEEP, restart=Restart.always)).wait_ready()
        first = process.pid
        process.kill()
        assert eventually(lambda: process.pid is not None and process.pid != first)
        process.wait_ready()
        assert (ended, process.restarts) == ([-signal.SIGKILL], 1)
    assert process.state is State.idle


def test_without_a_restart_policy_a_crash_stays(supervisor: Supervisor, tmp_path: Path) -> None:
    process = supervisor.start(spec(tmp_path, SLEEP)).wait_ready()
    process.kill()
    assert (process.state, process.wait(5)) == (State.exited, -signal.SIGKILL)


def test_stopped_and_woken(supervisor: Supervisor, tmp_path: Path) -> None:
    process = supervisor.start(spec(tmp_path, SLEEP)).wait_ready()
    assert process.pid is not None
    process.suspend()
    assert eventually(lambda: _status(process.pid) == "T")
    process.resume()
    assert eventually(lambda: _status(process.pid) == "S")


def test_grandchildren_die_with_their_parent(supervisor: Supervisor, tmp_path: Path) -> None:
    process = supervisor.start(spec(tmp_path, PARENT)).wait_ready()
    leader = process.pid
    assert leader is not None
    assert len(session_members(leader)) == 2
    os.kill(leader, signal.SIGKILL)
    process.wait(30)
    assert eventually(lambda: session_members(leader) == [])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_supervisor(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    with subprocess.Popen(
        [sys.executable, "-c", ABANDONED, PARENT, str(log)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as owner:
        assert owner.stdout is not None
        leader = int(owner.stdout.readline())
        assert eventually(lambda: log.is_file() and "up" in log.read_text())
        assert len(session_members(leader)) == 2
        owner.send_signal(number)
    assert eventually(lambda: session_members(leader) == [])


PULSING = """
import os, pathlib, sys, time
time.sleep(float(sys.argv[1]) if sys.argv[1:] else 0)
pathlib.Path(os.environ["FULGURITE_PULSE"]).touch()
time.sleep(600)
"""


def test_one_with_a_pulse_is_ready_at_its_first_beat_and_not_at_one_from_before(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    pulse = tmp_path / "run" / "pulse"
    made = msgspec.structs.replace(
        spec(tmp_path, PULSING, restart=Restart.always), ready=None, pulse=pulse
    )
    process = supervisor.start(made).wait_ready()
    assert pulse.exists()
    process.stop()
    idle = supervisor.start(
        msgspec.structs.replace(made, argv=[sys.executable, "-c", "import time; time.sleep(600)"])
    )
    assert not pulse.exists()
    assert not idle.is_ready()


def test_one_that_dies_at_its_start_is_told_with_its_last_error(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    code = (
        "import json; print(json.dumps({'level': 'error', 'event': 'cannot start', "
        "'error': "
        "'no model in /nope'})); raise SystemExit(78)"
    )
    made = msgspec.structs.replace(
        spec(tmp_path, code, restart=Restart.always), ready=None, pulse=tmp_path / "pulse"
    )
    with pytest.raises(
        ServiceExited,
        match="process ended with 78 before it was ready: cannot start: no model in /nope\n",
    ):
        supervisor.start(made).wait_ready()


def test_what_answers_for_a_dead_process_is_not_it(supervisor: Supervisor, tmp_path: Path) -> None:
    """Another program on its port."""
    made = msgspec.structs.replace(
        spec(tmp_path, "raise OSError(98, 'address already in use')", restart=Restart.always),
        ready=lambda: False,
    )
    process = supervisor.start(made)
    process.wait(30)
    assert not process.is_ready()
    with pytest.raises(ServiceExited, match="address already in use"):
        process.wait_ready()


def test_what_a_log_of_an_earlier_start_says_is_not_told(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    (tmp_path / "process.log").write_text("ValueError: of yesterday\n")
    with pytest.raises(ServiceExited) as told:
        supervisor.start(
            msgspec.structs.replace(spec(tmp_path, "import os; os._exit(3)"), ready=lambda: False)
        ).wait_ready()
    assert "yesterday" not in str(told.value)
    assert "ended with 3 before it was ready: its log has no error" in str(told.value)


def test_one_that_falls_at_each_start_is_given_up_and_each_end_is_told(tmp_path: Path) -> None:
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
        made = msgspec.structs.replace(spec(tmp_path, code, restart=Restart.always), max_restarts=2)
        process = supervisor.start(made).wait_ready()
        flag.touch()
        process.kill()
        assert eventually(lambda: again == [True, True, False])
        assert process.state is State.exited


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (3, "ended with 3"),
        (-9, "was ended by SIGKILL (by a person, or by the system for want of memory)"),
        (-15, "was ended by SIGTERM"),
        (-99, "was ended by signal 99"),
    ],
)
def test_how_it_ended(code: int, said: str) -> None:
    assert how_it_ended(code) == said


def test_a_watchdog_that_comes_up_after_its_parent_s_death_still_knows_what_it_was_told(
    tmp_path: Path,
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    script = Path(watchdog.__file__)
    # No process of this id is its parent: as one whose parent is gone.
    told = subprocess.run(
        [sys.executable, "-I", "-S", str(script), "1000000000"],
        input=f"+{child.pid}\n".encode(),
        check=False,
        timeout=60,
    )
    assert (told.returncode, child.wait(30)) == (0, -signal.SIGTERM)


def _status(pid: int | None) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
