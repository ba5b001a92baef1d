"""What the doctor finds, and what it advises."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli import doctor
from services.cli.doctor import Check


def test_what_is_needed_decides_and_every_remedy_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
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


@pytest.mark.parametrize(
    ("gib", "remedy", "needed"), [(4, True, True), (10, True, False), (16, False, True)]
)
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
    assert "not needed" in doctor.check_kafka(tmp_path).finding


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


FORMS = [
    ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:{}"),
    ("KAFKA_BOOTSTRAP_SERVERS", "PLAINTEXT://localhost:{}"),
    ("REDIS_URL", "redis://:a,b@127.0.0.1:{}/0?ssl_ca_certs=/etc/ca.pem"),
    ("VLLM_BASE_URL", "http://127.0.0.1:{}"),
    ("VLLM_BASE_URL", "east=http://127.0.0.1:{}/v1"),
    ("FULGURITE_GATEWAY_URL", "http://127.0.0.1:{}/v1"),
]


@pytest.mark.parametrize(("variable", "form"), FORMS)
def test_who_is_said_to_answer_is_asked(
    monkeypatch: pytest.MonkeyPatch, listening: int, variable: str, form: str
) -> None:
    monkeypatch.setenv(variable, form.format(listening))
    (alive,) = doctor.given_addresses([variable])
    assert f":{listening}" in alive.finding
    assert not alive.remedy
    monkeypatch.setenv(variable, form.format(1))
    (dead,) = doctor.given_addresses([variable])
    assert f"{variable} is set, but nothing answers at" in dead.finding
    assert "Connection refused" in dead.finding
    assert "a,b" not in dead.finding, "a password"
    assert (variable in dead.remedy, dead.needed) == (True, True)


def test_of_several_brokers_one_is_enough_and_of_several_engines_all(
    monkeypatch: pytest.MonkeyPatch, listening: int
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:1,127.0.0.1:{listening}")
    monkeypatch.setenv("VLLM_BASE_URL", f"http://127.0.0.1:{listening},http://127.0.0.1:1")
    kafka, vllm = doctor.given_addresses(["KAFKA_BOOTSTRAP_SERVERS", "VLLM_BASE_URL"])
    assert not kafka.remedy
    assert "127.0.0.1:1:" in vllm.finding


@pytest.mark.parametrize("variable", [address.variable for address in doctor.ADDRESSES])
@given(
    text=st.text(
        st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=30
    )
)
def test_no_address_makes_it_crash(variable: str, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, text)
        patch.setattr(socket, "create_connection", _refuse)
        assert len(doctor.given_addresses([variable])) == 1


def _refuse(*_: object) -> socket.socket:
    raise ConnectionRefusedError(111, "Connection refused")


def test_dead_addresses_are_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", ())
    for address in doctor.ADDRESSES:
        monkeypatch.delenv(address.variable, raising=False)
    doctor.doctor()
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(SystemExit) as ended:
        doctor.doctor()
    assert ended.value.code == 1
    assert "LACK  Redis" in capsys.readouterr().out


def test_it_runs_before_anything_is_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-E", "-s", "-S", "-m", "services.cli.doctor"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "platform" in done.stdout


def test_only_what_is_needed_and_missing_stops_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_memory", lambda: Check("memory", "little", "add some"))
    monkeypatch.setattr(
        doctor, "check_disk", lambda: Check("disk", "so so", "better have more", needed=False)
    )
    assert [check.name for check in doctor.lacking(local_vllm=False)] == ["memory"]
