"""What the parts of a local stack are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.processes.supervisor import ProcessSpec
from services.common.runtime.process_secrets import KEYS
from services.learner.config_file import load
from services.local_stack.local_stack import LocalStack, StackOptions, with_metrics_ports
from services.local_stack.model import tiny_model
from services.local_stack.vllm_local import LocalVllm

ADAPTERS = """
[[policy]]
name = "critic"
frozen = true

[[policy]]
name = "writer"
weights = {train = "lora", rank = 12}

[[policy]]
name = "editor"
weights = {train = "lora", rank = 8}
"""


@pytest.fixture(autouse=True)
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FULGURITE_RUN", raising=False)
    monkeypatch.delenv("FULGURITE_ALIASES", raising=False)


def services(stack: LocalStack) -> dict[str, ProcessSpec]:
    stack.environment = stack._environment(  # pyright: ignore[reportPrivateUsage]
        bootstrap_servers="b:1", redis_url="redis://r", vllm_url="http://v"
    )
    return {spec.name: spec for spec in stack._services()}  # pyright: ignore[reportPrivateUsage]


def test_a_run_of_several_adapters_has_a_learner_for_each_that_is_trained(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text(ADAPTERS)
    stack = LocalStack(StackOptions(data=tmp_path, run=run, model=tiny_model()))
    specs = services(stack)
    learners = {name for name in specs if name.startswith("learner")}
    assert learners == {"learner-writer", "learner-editor"}
    for name in learners:
        env = specs[name].env or {}
        config = load(Path(env["FULGURITE_RUN"]), env)
        assert f"learner-{config.policy.name}" == name
        assert config.policy.model == tiny_model()
    assert {
        name: (specs["gateway"].env or {})[name]
        for name in (
            "FULGURITE_POLICY",
            "FULGURITE_ALIASES",
            "FULGURITE_LORA_POLICIES",
            "FULGURITE_REWARDER_FROZEN_POLICIES",
        )
    } == {
        "FULGURITE_POLICY": "writer",
        "FULGURITE_ALIASES": "writer=writer,critic=critic,editor=editor",
        "FULGURITE_LORA_POLICIES": "critic,writer,editor",
        "FULGURITE_REWARDER_FROZEN_POLICIES": "critic",
    }
    assert stack.serving.arguments() == [
        "--enable-lora",
        "--max-lora-rank=16",
        "--max-loras=6",
        "--max-cpu-loras=15",
    ]


def test_the_only_policy_may_be_called_otherwise(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text(f"[policy]\nname = 'writer'\nmodel = '{tiny_model()}'\n")
    stack = LocalStack(StackOptions(data=tmp_path, run=run, aliases=("policy",)))
    environment = services(stack)["learner"].env or {}
    assert environment["FULGURITE_POLICY"] == "writer"
    assert environment["FULGURITE_MODEL"] == str(tiny_model())
    assert environment["FULGURITE_ALIASES"] == "writer=writer,policy=writer"
    assert (stack.serving.arguments(), stack.serving.adapters) == ([], ())
    named = LocalStack(StackOptions(data=tmp_path, run=run, policy="author"))
    assert named.serving.policies == ("author",)


def test_only_the_gateway_gets_keys(tmp_path: Path) -> None:
    specs = services(LocalStack(StackOptions(data=tmp_path, model=tiny_model())))
    holders = {name for name, spec in specs.items() if KEYS & (spec.env or {}).keys()}
    assert holders == {"gateway"}
    assert (specs["gateway"].env or {}).keys() >= KEYS


def test_the_console_has_the_admin_key_alone_and_the_lowest_priority(tmp_path: Path) -> None:
    stack = LocalStack(StackOptions(data=tmp_path, model=tiny_model(), console=True))
    console = services(stack)["console"]
    environment = console.env or {}
    assert KEYS & environment.keys() == {"FULGURITE_ADMIN_KEY"}
    assert console.argv[:3] == ["nice", "-n", "10"]
    assert stack.console_url == f"http://127.0.0.1:{environment['FULGURITE_CONSOLE_PORT']}"
    assert "console" not in services(LocalStack(StackOptions(data=tmp_path, model=tiny_model())))


def test_every_service_shows_its_metrics_on_a_port_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = services(LocalStack(StackOptions(data=tmp_path, model=tiny_model()))).values()
    monkeypatch.delenv("FULGURITE_METRICS_PORT", raising=False)
    assert with_metrics_ports(specs) == list(specs)
    monkeypatch.setenv("FULGURITE_METRICS_PORT", "9100")
    ports = [(one.env or {})["FULGURITE_METRICS_PORT"] for one in with_metrics_ports(specs)]
    assert ports == [str(9100 + place) for place in range(len(specs))]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, "none.invalid"), ("", "none.invalid"), ("images.example", "images.example")],
)
def test_vllm_fetches_from_no_domain_but_the_one_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    monkeypatch.setenv("FULGURITE_SERVE_ENV", str(tmp_path))
    monkeypatch.delenv("VLLM_MEDIA_DOMAIN", raising=False)
    if given is not None:
        monkeypatch.setenv("VLLM_MEDIA_DOMAIN", given)
    vllm = LocalVllm(tmp_path, tmp_path, port=1)
    assert f"--allowed-media-domains={expected}" in vllm.process.spec.argv
    vllm.stop()
