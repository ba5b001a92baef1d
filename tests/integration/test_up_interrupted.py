"""`fulgurite up` is stopped while it is still starting, also where a shell ignores SIGINT."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from services.local_stack.model import tiny_model
from services.local_stack.ports import free_port
from tests.integration.command_line import fulgurite_command
from tests.integration.test_processors import wait_until

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stack_that_is_starting_ends_all_it_started(
    tmp_path: Path, number: signal.Signals
) -> None:
    data = tmp_path / "data"
    command = fulgurite_command(
        "up", f"--data={data}", f"--model={tiny_model()}", f"--port={free_port()}"
    )
    own = {name: value for name, value in os.environ.items() if "KAFKA" not in name}
    with subprocess.Popen(
        command,
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # As a shell starts what it runs in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as up:
        started: list[psutil.Process] = []

        def has_started() -> bool:
            started[:] = psutil.Process(up.pid).children(recursive=True)
            return (data / "logs" / "kafka-1.log").is_file() or len(started) > 2

        wait_until(has_started, "the first parts are started")
        up.send_signal(number)
        said, _ = up.communicate(timeout=60)
    assert said.strip().splitlines()[-1] == "stopped; no process is left"
    # Python may end by the signal itself; a shell sees 130 either way.
    assert up.returncode in (130, -number)
    gone, alive = psutil.wait_procs(started, timeout=20)
    assert not alive, f"{len(gone)} of {len(started)} have ended"
