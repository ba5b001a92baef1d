"""A parent that dies leaves no child: real processes, killed parents."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.processes import watchdog
from services.common.processes.groups import session_members
from tests.services.common.processes.programs import PARENT, SLEEP, eventually

ABANDONED = """
import signal, sys, time
# A shell that starts it in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from services.common.processes.supervisor import ProcessSpec, Supervisor
argv = [sys.executable, "-c", sys.argv[1]]
started = Supervisor().start(ProcessSpec(name="parent", argv=argv, log=Path(sys.argv[2])))
print(started.pid, flush=True)
time.sleep(600)
"""


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


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_a_watchdog_that_starts_after_its_parent_s_death_still_reads_the_list(
    is_forgotten: bool,
) -> None:
    child = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    lines = f"+{child.pid}\n" + (f"-{child.pid}\n" if is_forgotten else "")
    # No process of this id is its parent: as one whose parent is gone.
    done = subprocess.run(
        watchdog.command(1_000_000_000), input=lines.encode(), check=False, timeout=60
    )
    assert (done.returncode, child.poll() is None) == (0, is_forgotten)
    child.kill()
    assert child.wait(30) == -(signal.SIGKILL if is_forgotten else signal.SIGTERM)
