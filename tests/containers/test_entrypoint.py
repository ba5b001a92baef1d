"""What our images start with: secrets from files, signals passed on, and no restart loop for what a
person has to change.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.local_stack.ports import free_port

CONTAINERS = Path(__file__).parents[2] / "containers"
PATH = os.environ["PATH"]


@contextmanager
def started(code: str, **environment: str) -> Generator[subprocess.Popen[str]]:
    argv = [str(CONTAINERS / "entrypoint.sh"), sys.executable, "-c", code]
    with subprocess.Popen(
        argv,
        text=True,
        env={"PATH": PATH, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(code: str, **environment: str) -> tuple[int, str]:
    with started(code, **environment) as process:
        said, _ = process.communicate(timeout=20)
        return process.returncode, said


SHOW = "import os; print(os.environ.get('FULGURITE_ADMIN_KEY'), end='')"


def test_a_secret_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "admin_key"
    file.write_text("from a file\n")
    assert run(SHOW, FULGURITE_ADMIN_KEY_FILE=str(file)) == (0, "from a file")
    assert run(SHOW, FULGURITE_ADMIN_KEY_FILE=str(file), FULGURITE_ADMIN_KEY="") == (
        0,
        "from a file",
    )
    assert run(SHOW, FULGURITE_ADMIN_KEY_FILE=str(file), FULGURITE_ADMIN_KEY="mine") == (0, "mine")


def test_other_variables_that_name_files_are_left_alone() -> None:
    """SSL_CERT_FILE is one that many machines set; a bundle of certificates is too long for a
    variable.
    """
    assert run(
        "import os; print('SSL_CERT' in os.environ, end='')", SSL_CERT_FILE="/etc/passwd"
    ) == (0, "False")


@pytest.mark.parametrize("code", [0, 1, 69])
def test_an_exit_status_is_passed_on(code: int) -> None:
    assert run(f"raise SystemExit({code})")[0] == code


def test_sigterm_reaches_the_service_and_its_status_comes_back() -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: (time.sleep(0.3), sys.exit(7))); "
        "print('up', flush=True); time.sleep(60)"
    )
    with started(code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 7


def test_a_command_reads_what_is_piped_into_it() -> None:
    argv = [str(CONTAINERS / "entrypoint.sh"), "cat"]
    done = subprocess.run(
        argv,
        input="a line\nand more",
        text=True,
        env={"PATH": PATH},
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert (done.returncode, done.stdout) == (0, "a line\nand more")


def test_a_command_at_a_terminal_has_it_to_itself() -> None:
    code = (
        "import signal, sys; assert sys.stdin.isatty(); "
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler; "
        "print('read ' + input()); raise SystemExit(78)"
    )
    ours, theirs = os.openpty()
    try:
        with subprocess.Popen(
            [str(CONTAINERS / "entrypoint.sh"), sys.executable, "-c", code],
            text=True,
            env={"PATH": PATH},
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Tests that run in the background ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            os.write(ours, b"typed\n")
            said, problems = process.communicate(timeout=20)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (process.returncode, said, problems) == (78, "read typed\n", "")


def stays_and_says(code: str, what: str, **environment: str) -> None:
    with started(code, **environment) as process:
        assert process.stderr is not None
        said = ""
        while "gave up: change" not in said:
            line = process.stderr.readline()
            assert line, f"it ended: {said}"
            said += line
        assert what in said
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


def test_a_service_that_gives_up_stays_and_is_unhealthy(tmp_path: Path) -> None:
    pulse = tmp_path / "pulse"
    pulse.touch()
    stays_and_says(
        "import sys; print('X=1 is wrong', file=sys.stderr); sys.exit(78)",
        "X=1 is wrong",
        FULGURITE_PULSE=str(pulse),
    )
    assert not pulse.exists()


def test_a_service_killed_while_it_starts_names_its_limit() -> None:
    kill = "import os; os.kill(os.getpid(), 9)"
    stays_and_says(
        kill, "Raise VLLM_MEMORY in .env (now 2g)", MEMORY_SETTING="VLLM_MEMORY", MEMORY_LIMIT="2g"
    )


@pytest.mark.parametrize(
    ("code", "status"),
    [
        pytest.param("raise SystemExit(78)", 78, id="gave up"),
        pytest.param("import os; os.kill(os.getpid(), 9)", 137, id="killed while it started"),
    ],
)
def test_where_others_start_it_again_a_container_ends_with_its_service(
    code: str, status: int
) -> None:
    assert run(code, FULGURITE_GIVE_UP="exit")[0] == status


def test_where_others_start_it_again_a_container_ends_without_its_secret(tmp_path: Path) -> None:
    missing = str(tmp_path / "admin_key")
    assert run(SHOW, FULGURITE_ADMIN_KEY_FILE=missing, FULGURITE_GIVE_UP="exit") == (78, "")


def healthy(pulse: Path, broker: str, seconds: int = 20) -> bool:
    argv = [str(CONTAINERS / "healthy.sh"), str(seconds)]
    environment = {"PATH": PATH, "FULGURITE_PULSE": str(pulse), "KAFKA_BOOTSTRAP_SERVERS": broker}
    return subprocess.run(argv, env=environment, capture_output=True, check=False).returncode == 0


def test_health_is_a_young_pulse_and_a_broker_that_answers(tmp_path: Path) -> None:
    pulse = tmp_path / "pulse"
    with socket.create_server(("127.0.0.1", 0)) as broker:
        there = f"127.0.0.1:{broker.getsockname()[1]}"
        assert not healthy(pulse, there)
        pulse.touch()
        assert healthy(pulse, f"{there},elsewhere.example:9092")
        assert healthy(pulse, f"127.0.0.1:{free_port()},{there}"), "one broker of several is away"
        os.utime(pulse, (time.time() - 30, time.time() - 30))
        assert not healthy(pulse, there)
        assert healthy(pulse, there, 60)
    assert not healthy(pulse, there, 60)
