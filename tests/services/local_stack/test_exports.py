"""Exports of a stack: written for its owner, read back, printed while it runs; and one stack on a
folder.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.cli.main import app
from services.local_stack.errors import AlreadyRunning
from services.local_stack.exports import (
    StackLock,
    exporting_stack,
    is_running,
    read_exports,
    write_exports,
)

KAFKA = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:5"}
HOLDER = """
import sys, time
from pathlib import Path
from services.local_stack.exports import StackLock
StackLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(600)
"""


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z_]{1,9}", fullmatch=True),
        st.text("ab '\"$`\\=;&|~é", max_size=9),
        max_size=4,
    )
)
def test_what_is_written_is_read_back_by_us_and_by_a_shell(
    tmp_path_factory: pytest.TempPathFactory, variables: dict[str, str]
) -> None:
    data = tmp_path_factory.mktemp("data")
    write_exports(data, variables)
    assert read_exports(data) == variables
    assert stat.S_IMODE((data / "env").stat().st_mode) == 0o600


def test_a_shell_takes_it(tmp_path: Path) -> None:
    value = 'a\'b "c" $HOME `x`'
    write_exports(tmp_path, {"NAME_OF_OURS": value})
    script = f'. {shlex.quote(str(tmp_path / "env"))}; printf %s "$NAME_OF_OURS"'
    shown = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert shown.stdout.decode() == value


def test_a_damaged_file_is_none(tmp_path: Path) -> None:
    assert read_exports(tmp_path) == {}
    (tmp_path / "env").write_text("export A='open\n")
    assert read_exports(tmp_path) == {}
    (tmp_path / "env").write_text("set A=1\nexport B\nexport C=2\n")
    assert read_exports(tmp_path) == {"C": "2"}


def test_one_stack_on_a_folder(tmp_path: Path) -> None:
    lock = StackLock(tmp_path)
    assert not is_running(tmp_path)
    lock.acquire()
    assert is_running(tmp_path)
    with pytest.raises(AlreadyRunning, match=rf"process {os.getpid()}\) already runs on .*--data"):
        StackLock(tmp_path).acquire()
    lock.release()
    lock.release()
    assert not is_running(tmp_path)
    StackLock(tmp_path).acquire()


def test_the_lock_goes_with_a_killed_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert is_running(tmp_path)
        holder.kill()
        holder.wait()
    assert not is_running(tmp_path)


def test_exports_of_a_stack_differ_from_a_kafka_of_your_own(tmp_path: Path) -> None:
    write_exports(tmp_path, KAFKA)
    assert exporting_stack({**KAFKA, "FULGURITE_DATA_DIR": str(tmp_path)}) == tmp_path
    assert (
        exporting_stack(
            {"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "FULGURITE_DATA_DIR": str(tmp_path)}
        )
        is None
    )
    assert exporting_stack(KAFKA) is None
    assert exporting_stack({"FULGURITE_DATA_DIR": str(tmp_path)}) is None


def test_env_prints_exports_only_while_the_stack_is_up(tmp_path: Path) -> None:
    write_exports(tmp_path, {"OPENAI_API_KEY": "sk x"})
    down = CliRunner().invoke(app, ["env", "--data", str(tmp_path)])
    assert (down.exit_code, down.stdout) == (1, "")
    lock = StackLock(tmp_path)
    lock.acquire()
    up = CliRunner().invoke(app, ["env", "--data", str(tmp_path)])
    assert (up.exit_code, up.stdout) == (0, "export OPENAI_API_KEY='sk x'\n")
    lock.release()
