"""Before any container starts: what is wrong is reported with its setting and its remedy, secrets are
made once.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.local_stack import preflight
from services.local_stack.ports import free_port


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULGURITE_MODEL", "/models/some")


def settings_problems(monkeypatch: pytest.MonkeyPatch, **settings: str) -> list[str]:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return list(preflight.check_settings(settings))


def test_the_defaults_are_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_problems(monkeypatch) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FULGURITE__OPTIMIZER__LR", "fast"),
        ("FULGURITE__BATCH__GROUPS", "0"),
        ("FULGURITE_AGGREGATOR_SILENCE_S", "-1"),
        ("FULGURITE_REPLICATION", "three"),
        ("FULGURITE_ALIASES", "policy"),
    ],
)
def test_a_wrong_value_is_reported_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    (problem,) = settings_problems(monkeypatch, **{name: value})
    assert problem.startswith(name)
    assert value in problem
    assert ".env" in problem


RUN = """
[[policy]]
name = "writer"
weights = {train = "lora"}
[[policy]]
name = "critic"
frozen = true
"""
TOLD = {
    "FULGURITE_POLICY": "writer",
    "FULGURITE_ALIASES": "writer=writer,critic=critic",
    "FULGURITE_LORA_POLICIES": "writer,critic",
    "FULGURITE_REWARDER_FROZEN_POLICIES": "critic",
    "FULGURITE_MODEL": "/models/some",
}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, None),
        ({"FULGURITE_LORA_POLICIES": "writer"}, "FULGURITE_LORA_POLICIES=writer: RUN_FILE needs FULGURITE_LORA_POLICIES=writer,critic"),
        ({"FULGURITE_REWARDER_FROZEN_POLICIES": ""}, "RUN_FILE needs FULGURITE_REWARDER_FROZEN_POLICIES=critic"),
        ({"FULGURITE_REWARDER_FROZEN_POLICIES": "critic,writer"}, "names writer, which RUN_FILE trains"),
        ({"FULGURITE_POLICY": "editor", "FULGURITE_ALIASES": "e=editor,w=writer,c=critic"}, "RUN_FILE has no such policy. Set it to writer"),
        ({"FULGURITE_ALIASES": "writer=writer"}, "names no alias for critic, so no agent could ask for it: add critic=critic"),
    ],
)  # fmt: skip
def test_what_services_are_not_told_of_a_run_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: dict[str, str], says: str | None
) -> None:
    run = tmp_path / "run.toml"
    run.write_text(RUN)
    monkeypatch.setenv("FULGURITE_RUN", str(run))
    problems = settings_problems(monkeypatch, **{**TOLD, **changed})
    if says is None:
        assert problems == []
    else:
        (problem,) = problems
        assert says in problem
        assert ".env" in problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[batch]\ngropus = 1", "batch.gropus: there is no such key"),
        ("[[policy]]\nname = 'a'\n[[policy]]\nname = 'b'", "a trains all weights"),
        ("[policy]\nmodel = '/models/other'", "policy.model = /models/other, but vLLM starts with FULGURITE_MODEL=/models/some"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_trained_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, says: str
) -> None:
    run = tmp_path / "run.toml"
    run.write_text(text)
    monkeypatch.setenv("FULGURITE_RUN", str(run))
    (problem,) = settings_problems(monkeypatch, FULGURITE_MODEL="/models/some")
    assert says in problem


def test_a_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = settings_problems(monkeypatch, FULGURITE_SIGNING_KEYS="hunter2hunter2")
    assert "FULGURITE_SIGNING_KEYS" in problem
    assert "hunter2" not in problem


def test_a_policy_without_an_alias_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = settings_problems(monkeypatch, FULGURITE_POLICY="writer")
    assert "add writer=writer" in problem


@pytest.mark.parametrize("profiles", ["", "rewards", "cpu,gpu", "tpu"])
def test_one_of_two_profiles(profiles: str) -> None:
    (problem,) = preflight.check_profile({"COMPOSE_PROFILES": profiles})
    assert "COMPOSE_PROFILES=cpu" in problem


def test_gpus_are_counted(tmp_path: Path) -> None:
    chosen = {"COMPOSE_PROFILES": "gpu,rewards"}
    assert "shows 0 NVIDIA GPU(s)" in next(preflight.check_profile(chosen, tmp_path / "none"))
    (tmp_path / "0000:01:00.0").mkdir()
    assert "shows 1 NVIDIA GPU(s)" in next(preflight.check_profile(chosen, tmp_path))
    assert list(preflight.check_profile({**chosen, "LEARNER_GPU": "0"}, tmp_path)) == []
    (tmp_path / "0000:02:00.0").mkdir()
    assert list(preflight.check_profile(chosen, tmp_path)) == []


def test_too_little_memory_names_the_setting(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:        4028264 kB\n")
    (problem,) = preflight.check_memory({}, meminfo)
    assert problem.startswith("MEMORY_NEEDED_GIB=8: containers have 3.8 GiB")
    assert list(preflight.check_memory({"MEMORY_NEEDED_GIB": "4"}, meminfo)) == []
    (problem,) = preflight.check_memory(
        {"MEMORY_NEEDED_GIB": "4", "VLLM_CPU_KVCACHE_SPACE": "4"}, meminfo
    )
    assert "VLLM_MEMORY=5g" in problem
    assert "at least 6.5g" in problem
    (problem,) = preflight.check_memory({"VLLM_MEMORY": "lots"}, meminfo)
    assert "VLLM_MEMORY" in problem


@pytest.mark.parametrize(
    ("size", "expected"), [("512m", 512 << 20), ("5g", 5 << 30), ("5GB", 5 << 30), ("1024", 1024)]
)
def test_sizes_as_docker_writes_them(size: str, expected: int) -> None:
    assert preflight.as_bytes(size) == expected


def test_numbers_of_the_compose_file() -> None:
    assert list(preflight.check_numbers({})) == []
    (problem,) = preflight.check_numbers({"VLLM_MAX_MODEL_LEN": "0"})
    assert problem.startswith("VLLM_MAX_MODEL_LEN=0")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        yield int(listening.getsockname()[1])


def test_a_port_in_use_names_the_setting(taken: int) -> None:
    (problem,) = preflight.check_port({"GATEWAY_PORT": str(taken)})
    assert problem.startswith(f"GATEWAY_PORT={taken}")
    assert list(preflight.check_port({"GATEWAY_PORT": str(free_port())})) == []
    assert "GATEWAY_PORT=http" in next(preflight.check_port({"GATEWAY_PORT": "http"}))


def kafka_problems(root: Path) -> list[str]:
    return list(preflight.check_volumes({"KAFKA_CLUSTER_ID": "ours", "CHECK_PROJECT": "p"}, root))


def test_a_kafka_volume_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "kafka"
    folder.mkdir()
    assert kafka_problems(tmp_path) == []
    (folder / "fulgurite.llm.calls-0").mkdir()
    (problem,) = kafka_problems(tmp_path)
    assert "p_kafka is half-written" in problem
    assert "docker volume rm p_kafka" in problem
    (folder / "meta.properties").write_text("version=1\ncluster.id=theirs\n")
    (problem,) = kafka_problems(tmp_path)
    assert "set KAFKA_CLUSTER_ID=theirs" in problem
    (folder / "meta.properties").write_text("version=1\ncluster.id=ours\n")
    assert kafka_problems(tmp_path) == []


def test_secrets_are_made_once_and_never_readable_by_others(tmp_path: Path) -> None:
    assert preflight.make_secrets(tmp_path, {"FULGURITE_ADMIN_KEY": "given"}) == [
        "admin_key",
        "api_keys",
        "signing_keys",
    ]
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made["admin_key"] == "given"
    assert made["signing_keys"].startswith("k1:")
    assert len(made["api_keys"]) > 24
    assert all(path.stat().st_mode & 0o777 == 0o400 for path in tmp_path.iterdir())
    assert preflight.make_secrets(tmp_path, {}) == []
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == made


def test_a_service_gets_a_copy_of_the_one_secret_it_needs(tmp_path: Path) -> None:
    own = tmp_path / "judge-secrets"
    own.mkdir()
    (tmp_path / "api_keys").write_text("one")
    for expected in ("one", "two"):
        (tmp_path / "api_keys").write_text(expected)
        preflight.share_secret(tmp_path / "api_keys", own)
        assert [(path.name, path.read_text()) for path in own.iterdir()] == [("api_keys", expected)]
