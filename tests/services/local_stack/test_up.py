"""`fulgurite up`, as far as it goes without starting anything: what it refuses, and what it says."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.cli import doctor
from services.cli.main import app
from services.common.processes.supervisor import ProcessSpec, Supervisor
from services.common.runtime.model_folder import model_problem
from services.local_stack import up
from services.local_stack.exports import StackLock, write_exports
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.local_stack import LocalStack, StackOptions, all_aliases
from services.local_stack.ports import free_port, is_free


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can run it, and a shell without exports."""
    for name in (
        "KAFKA_BOOTSTRAP_SERVERS",
        "REDIS_URL",
        "VLLM_BASE_URL",
        "FULGURITE_DATA_DIR",
        "FULGURITE_ALIASES",
        "FULGURITE_RUN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "lacking", _nothing_lacks)
    monkeypatch.setattr(up, "hide_from_other_processes", lambda: None)
    monkeypatch.setattr(up.logs, "configure", _configure_nothing)
    monkeypatch.setattr(LocalStack, "_start", _fail)


def _configure_nothing(_service: str, _level: str) -> None:
    """Logging outlives the command's own streams in here."""


def _nothing_lacks(**_: bool) -> list[doctor.Check]:
    return []


def _fail(_stack: LocalStack) -> None:
    pytest.fail("it was started")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def refused(data: Path, *arguments: str) -> str:
    done = CliRunner().invoke(
        app, ["up", "--data", str(data), "--port", str(free_port()), *arguments]
    )
    assert done.exit_code == 1, done.output
    return done.output


def test_a_taken_port_is_named_with_what_to_do(tmp_path: Path, taken: int) -> None:
    said = refused(tmp_path, "--port", str(taken))
    assert f"port {taken} on 127.0.0.1 is taken by another program" in said
    assert f"--port {taken + 1}" in said


def test_a_dead_address_is_named_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:2/0")
    said = refused(tmp_path)
    assert "KAFKA_BOOTSTRAP_SERVERS is set, but nothing answers at 127.0.0.1:1" in said
    assert "unset KAFKA_BOOTSTRAP_SERVERS" in said
    assert "REDIS_URL is set" in said


@pytest.mark.parametrize("model", ["/nope", "Qwen/Qwen2.5-0.5B-Instruct", "."])
def test_what_is_no_model_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(tmp_path / "data", "--model", model)
    assert f"--model {model}" in said
    assert ("hf download Qwen/" in said) == model.startswith("Qwen")


@pytest.mark.parametrize(
    ("file", "arguments", "says"),
    [
        ("[batch]\ngropus = 3", (), "run.toml: batch.gropus: there is no such key; did you mean batch.groups?"),
        ("[policy]\nmodel = '/nope'", (), "policy.model = /nope: no such folder"),
        ("[[policy]]\nname = 'a'\n[[policy]]\nname = 'b'", (), "a trains all weights, and a new version of it replaces those that b would be"),
        ("[[policy]]\nname = 'a'", ("--policy", "b"), "'b' was named, but run.toml has a name for each of its policies (a)"),
        ("", ("--chat-template", "none.jinja"), "FULGURITE_VLLM_CHAT_TEMPLATE=none.jinja: none.jinja is not a file"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_served_is_refused(
    tmp_path: Path, file: str, arguments: tuple[str, ...], says: str
) -> None:
    run = tmp_path / "run.toml"
    run.write_text(file)
    assert says in refused(tmp_path / "data", "--run", str(run), *arguments)


def test_a_second_stack_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    lock = StackLock(tmp_path)
    lock.acquire()
    assert "already runs on" in refused(tmp_path)
    lock.release()


def test_the_exports_of_another_stack_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_exports(other, {"KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{taken}"})
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{taken}")
    monkeypatch.setenv("FULGURITE_DATA_DIR", str(other))
    assert "two stacks on one Kafka would train one policy twice" in refused(tmp_path / "data")
    assert (
        LocalStack(StackOptions(data=tmp_path / "demo", own_kafka=True))._external_address(  # pyright: ignore[reportPrivateUsage]
            "KAFKA_BOOTSTRAP_SERVERS"
        )
        is None
    )


def test_what_the_folder_itself_exported_counts_as_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = LocalKafka(tmp_path / "kafka")
    kafka.stop()
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    stack = LocalStack(StackOptions(data=tmp_path))
    assert stack._external_address("KAFKA_BOOTSTRAP_SERVERS") is None  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")
    assert stack._external_address("KAFKA_BOOTSTRAP_SERVERS") == "kafka.example:9092"  # pyright: ignore[reportPrivateUsage]


def test_kafka_keeps_its_port_until_another_program_has_it(tmp_path: Path) -> None:
    def ports() -> tuple[list[int], list[int]]:
        kafka = LocalKafka(tmp_path, brokers=2)
        kafka.stop()
        return kafka.ports, kafka.moved_from

    first, moved = ports()
    assert (ports(), moved) == ((first, []), [])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", first[1]))
        listener.listen()
        assert not is_free(first[1])
        second, moved = ports()
        assert (moved, first[1] in second) == (first, False)
    assert ports() == (second, [])


@pytest.mark.parametrize(
    ("given_by_user", "added", "expected"),
    [
        ("", (), "policy=policy"),
        ("gpt-4o-mini=policy", (), "policy=policy,gpt-4o-mini=policy"),
        (
            "gpt-4o-mini=policy, sql=writer",
            ("claude", "sql=policy"),
            "policy=policy,gpt-4o-mini=policy,sql=policy,claude=policy",
        ),
        ("policy=writer", (), "policy=writer"),
    ],
)
def test_aliases_of_the_user_stay(
    given_by_user: str, added: tuple[str, ...], expected: str
) -> None:
    assert all_aliases(["policy"], given_by_user.split(","), added) == expected


def test_every_policy_is_an_alias_and_a_bare_alias_is_of_the_first() -> None:
    found = all_aliases(("writer", "critic", "writer"), [""], ["gpt-4o-mini", "critic"])
    assert found == "writer=writer,critic=critic,gpt-4o-mini=writer"


names = st.from_regex(r"[a-z][a-z0-9.-]{0,5}", fullmatch=True)


@given(st.dictionaries(names, names, max_size=4), st.lists(names, max_size=3))
def test_no_alias_is_lost(given_by_user: dict[str, str], added: list[str]) -> None:
    found = dict(
        pair.split("=")
        for pair in all_aliases(
            ["policy"], [f"{a}={p}" for a, p in given_by_user.items()], added
        ).split(",")
    )
    assert found == {"policy": "policy", **dict.fromkeys(added, "policy"), **given_by_user}


def test_a_model_folder(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        problem = model_problem(tmp_path)
        assert problem is not None
        assert name.removeprefix("model") in problem
        (tmp_path / name).touch()
    assert model_problem(tmp_path) is None


@pytest.mark.parametrize("again", [True, False])
def test_the_end_of_a_part_is_printed_with_its_reason_and_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    (tmp_path / "log").write_text(
        '{"level": "error", "event": "the learner cannot continue", "error": "no checkpoint"}\n'
    )
    with Supervisor() as supervisor:
        process = supervisor.add(ProcessSpec(name="learner", argv=[], log=tmp_path / "log"))
        monkeypatch.setattr(process, "will_restart", lambda: again)
        up._print_exit(process, 78)  # pyright: ignore[reportPrivateUsage]
    said = capsys.readouterr().err
    assert "learner ended with 78: the learner cannot continue: no checkpoint" in said
    assert ("it is started again" in said) == again
    assert ("NOT started again" in said) != again
