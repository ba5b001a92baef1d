"""What the doctor finds, and what it advises."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli import doctor
from services.cli.doctor import Check


def test_what_is_needed_decides_and_every_remedy_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.report([Check("a", "fine"), Check("b", "so so", "do this", needed=False)])
    assert not doctor.report([Check("c", "bad", "do that")])
    told = capsys.readouterr().out
    assert "note  b" in told
    assert "LACK  c" in told
    assert "-> do that" in told


def test_a_cpu_without_avx2_is_refused(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("flags\t\t: fpu sse2\n")
    assert doctor.check_cpu(info).remedy
    assert doctor.check_cpu(info).needed
    info.write_text("flags\t\t: fpu avx2 avx512f\n")
    assert "avx512f" in doctor.check_cpu(info).finding


@pytest.mark.parametrize(("gib", "remedy", "needed"), [(4, True, True), (10, True, False), (16, False, True)])
def test_memory(tmp_path: Path, gib: int, remedy: bool, needed: bool) -> None:
    info = tmp_path / "meminfo"
    info.write_text(f"MemTotal: 1 kB\nMemAvailable: {gib << 20} kB\n")
    check = doctor.check_memory(info)
    assert (bool(check.remedy), check.needed) == (remedy, needed)
    assert not doctor.check_memory(tmp_path / "absent").needed


def test_a_port_in_use_is_noticed() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = int(listener.getsockname()[1])
        assert doctor.check_port(port).finding == "in use"
    assert doctor.check_port(port).finding == "free"


def test_missing_environments_are_named(tmp_path: Path) -> None:
    assert "make install" in doctor.check_environments(tmp_path).remedy


def test_an_index_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    check = doctor.check_index()
    assert check.finding == "does not answer"
    assert check.remedy


def test_a_kafka_of_ones_own_needs_no_jars(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")
    assert "kafka.example:9092" in doctor.check_kafka(tmp_path).finding


def test_it_runs_before_anything_is_installed() -> None:
    script = Path(doctor.__file__)
    done = subprocess.run([sys.executable, "-I", "-S", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "platform" in done.stdout


def test_only_what_is_needed_and_missing_stops_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_memory", lambda: Check("memory", "little", "add some"))
    monkeypatch.setattr(doctor, "check_disk", lambda: Check("disk", "so so", "better have more", needed=False))
    monkeypatch.setenv("VLLM_BASE_URL", "http://127.0.0.1:1")
    assert [check.name for check in doctor.lacking()] == ["memory"]
