"""The compose files are what Compose accepts, and keep what they promise: pinned, healthy, limited,
not root, one port on loopback.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.learner.config import OptimizerConfig
from services.learner.config_file import load
from services.local_stack.local_services import pins
from services.local_stack.model import SMALL_MODEL
from tests.compose.engine import compose_command

ROOT = Path(__file__).parents[2]
ONE_SHOT = {"check", "topics", "model", "model-gpu", "cli"}
NOT_OURS = {"kafka", "kafka-2", "kafka-3", "redis", "balancer"}
"""Official images with users of their own."""
WITH_LOG = {
    "gateway",
    "aggregator",
    "rewarder",
    "reward-worker",
    "judge",
    "selector",
    "learner",
    "applier",
    "console",
}
EVERY_PROFILE = "cpu,gpu,rewards,judge,selector,cli"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
MANAGED = {
    "KAFKA_BOOTSTRAP_SERVERS": "broker.example:9093",
    "KAFKA_SASL_USERNAME": "user",
    "KAFKA_SASL_PASSWORD": "password",
}

Services = dict[str, dict[str, Any]]


def config(
    profiles: str, *overrides: str, settings: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = compose_command()
    if command is None:
        pytest.skip(
            "no Docker Compose for this platform: install it, or set DOCKER_COMPOSE to its binary"
        )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "COMPOSE_PROFILES": profiles,
        **(settings or {}),
    }
    files = [
        part for name in ("docker-compose.yml", *overrides) for part in ("-f", str(ROOT / name))
    ]
    return subprocess.run(
        [*command, *files, "config", "--format", "json"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )


def resolved(profiles: str, *overrides: str, settings: dict[str, str] | None = None) -> Services:
    done = config(profiles, *overrides, settings=settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["services"]


@pytest.fixture(
    scope="module",
    params=[
        ("cpu,rewards,judge,selector,cli",),
        ("gpu,rewards,judge,selector,cli",),
        ("cpu,rewards,judge,selector,cli", "docker-compose.ha.yml"),
    ],
    ids=["cpu", "gpu", "ha"],
)
def services(request: pytest.FixtureRequest) -> Services:
    return resolved(*request.param)


def test_every_lasting_service_has_a_health_check_a_limit_and_starts_again(
    services: Services,
) -> None:
    for name in services.keys() - ONE_SHOT:
        assert services[name]["healthcheck"]["test"], name
        assert services[name]["restart"] == "unless-stopped", name
    assert all(int(service["mem_limit"]) > 0 for service in services.values())
    assert all(services[name]["restart"] == "no" for name in ONE_SHOT & services.keys())


def test_nothing_starts_before_the_check_and_nothing_works_before_the_topics(
    services: Services,
) -> None:
    for name in services.keys() - {"check", "cli"}:
        assert "check" in _before(services, name), name
    for name in WITH_LOG & services.keys():
        assert {"topics", "kafka"} <= _before(services, name), name


def _before(services: Services, name: str) -> set[str]:
    direct = set(services[name].get("depends_on", {}))
    return direct.union(*(_before(services, other) for other in direct))


def test_images_are_pinned_and_targets_exist(services: Services) -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    for name, service in services.items():
        assert re.search(r":\d+\.\d+", service["image"]), name
        assert "build" not in service or service["build"]["target"] in targets, name
    assert not re.search(r"^ARG \w+_IMAGE=\S+:\d+\.\d+-", DOCKERFILE, re.MULTILINE), (
        "a base is pinned to its patch release"
    )


def test_two_ports_are_published_and_only_on_loopback(services: Services) -> None:
    published = {
        (name, port["host_ip"], port["published"])
        for name, service in services.items()
        for port in service.get("ports", ())
    }
    assert {("console", "127.0.0.1", "8090")} < published
    assert {(host, port) for _, host, port in published - {("console", "127.0.0.1", "8090")}} == {
        ("127.0.0.1", "8080")
    }


def test_the_engine_is_reached_by_gateway_and_applier_alone(services: Services) -> None:
    members = {
        name for name, service in services.items() if "engine" in service.get("networks", {})
    }
    assert members - {"vllm", "vllm-gpu"} <= {"gateway", "gateway-2", "applier"}
    for name in ("vllm", "vllm-gpu"):
        assert name not in services or set(services[name]["networks"]) == {"engine"}


def test_who_reads_what_agents_wrote_has_no_signing_and_no_admin_key(services: Services) -> None:
    operators = {"check", "gateway", "gateway-2", "cli"}
    for name, service in services.items():
        volumes = {volume["source"] for volume in service.get("volumes", ())}
        assert name in operators or "secrets" not in volumes, name
        assert (
            name in operators
            or not {"FULGURITE_SIGNING_KEYS", "FULGURITE_ADMIN_KEY"}
            & service.get("environment", {}).keys()
        ), name


def test_vllm_fetches_nothing_that_a_request_names(services: Services) -> None:
    for name in {"vllm", "vllm-gpu"} & services.keys():
        assert "--allowed-media-domains=none.invalid" in services[name]["command"]
    assert DOCKERFILE.count("VLLM_MEDIA_URL_ALLOW_REDIRECTS=0") == 2


def test_containers_have_no_rights_and_cannot_write_their_image(services: Services) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("read_only") or name.startswith("kafka"), name
        assert service["init"], name


def test_no_secret_has_a_default() -> None:
    text = "".join(path.read_text() for path in [*ROOT.glob("docker-compose*.yml"), ROOT / ".env"])
    assert not re.search(r"(KEYS?|PASSWORD|SECRET)(_FILE)?:-[^}]", text)
    lines = [
        line
        for line in (ROOT / ".env").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert not [
        line for line in lines if re.match(r".*(_KEYS?|SECRET|PASSWORD)$", line.partition("=")[0])
    ]


def test_every_setting_of_env_is_used_and_every_setting_used_is_in_env() -> None:
    used = set(
        re.findall(
            r"\$\{([A-Z_]+)",
            (ROOT / "docker-compose.yml").read_text()
            + (ROOT / "docker-compose.kafka-port.yml").read_text(),
        )
    )
    listed = {
        line.partition("=")[0]
        for line in (ROOT / ".env").read_text().splitlines()
        if re.match(r"[A-Z_]+=", line)
    }
    secrets = {"FULGURITE_SIGNING_KEYS", "FULGURITE_ADMIN_KEY", "FULGURITE_API_KEYS"}
    assert used - secrets - {"COMPOSE_PROJECT_NAME"} == listed


def test_a_managed_kafka_takes_the_place_of_the_broker() -> None:
    assert "kafka" not in resolved("cpu", "docker-compose.managed-kafka.yml", settings=MANAGED)


@pytest.mark.parametrize(
    ("override", "brokers", "protocol"),
    [
        ("docker-compose.managed-kafka.yml", "broker.example:9093", "SASL_SSL"),
        ("docker-compose.ha.yml", "kafka:9092,kafka-2:9092,kafka-3:9092", None),
    ],
)
def test_every_service_that_uses_the_log_uses_the_brokers_of_the_override(
    override: str, brokers: str, protocol: str | None
) -> None:
    settings = {**MANAGED, "SECOND_POLICY": "critic"}
    files = ("docker-compose.second-policy.yml",)
    base = resolved(EVERY_PROFILE, *files, settings=settings)
    overridden = resolved(EVERY_PROFILE, *files, override, settings=settings)
    with_log = {
        name
        for name, service in base.items()
        if "KAFKA_BOOTSTRAP_SERVERS" in service.get("environment", {})
    }
    assert with_log > WITH_LOG | {"learner-2", "learner-2-gpu"}
    for name in with_log:
        given = overridden[name]["environment"]
        assert given["KAFKA_BOOTSTRAP_SERVERS"] == brokers, name
        assert given.get("KAFKA_SECURITY_PROTOCOL") == protocol, name


@pytest.mark.parametrize("override", ["docker-compose.managed-kafka.yml", "docker-compose.ha.yml"])
def test_there_is_one_learner_without_a_second_policy(override: str) -> None:
    for profile, name in (("cpu", "learner"), ("gpu", "learner-gpu")):
        services = resolved(profile, override, settings=MANAGED)
        assert [one for one in services if one.startswith("learner")] == [name]


def test_a_managed_kafka_without_its_password_is_refused_by_name() -> None:
    done = config(
        "cpu", "docker-compose.managed-kafka.yml", settings={**MANAGED, "KAFKA_SASL_PASSWORD": ""}
    )
    assert done.returncode != 0
    assert "KAFKA_SASL_PASSWORD" in done.stderr


def test_three_brokers_make_one_quorum_with_volumes_of_their_own() -> None:
    services = resolved("cpu", "docker-compose.ha.yml")
    brokers = [services[name] for name in ("kafka", "kafka-2", "kafka-3")]
    assert len({broker["environment"]["KAFKA_NODE_ID"] for broker in brokers}) == 3
    assert len({broker["environment"]["KAFKA_ADVERTISED_LISTENERS"] for broker in brokers}) == 3
    assert len({broker["volumes"][0]["source"] for broker in brokers}) == 3
    assert {broker["environment"]["KAFKA_MIN_INSYNC_REPLICAS"] for broker in brokers} == {"2"}
    assert services["aggregator-2"]["environment"]["FULGURITE_AGGREGATOR_INSTANCE"] == "1"
    assert services["rewarder-2"]["environment"]["FULGURITE_REWARDER_INSTANCE"] == "1"
    assert all(
        services[name]["environment"]["FULGURITE_REPLICATION"] == "3"
        for name in WITH_LOG & services.keys()
    )


def test_the_balancer_asks_both_gateways_and_answers_as_the_api_does() -> None:
    text = (ROOT / "containers" / "balancer.cfg").read_text()
    gateways = {
        name for name in resolved("cpu", "docker-compose.ha.yml") if name.startswith("gateway")
    }
    assert set(re.findall(r"^  server \w+ (\S+):8080", text, re.MULTILINE)) == gateways
    bodies = [
        json.loads(body)
        for body in re.findall(r"^  http-error .* string '(.*)'$", text, re.MULTILINE)
    ]
    assert [set(body["error"]) for body in bodies] == [{"message", "type", "param", "code"}] * 3


def test_the_small_model_lies_where_the_stack_makes_it() -> None:
    folder = pins().models[SMALL_MODEL].folder
    services = resolved("cpu")
    assert services["learner"]["environment"]["FULGURITE_MODEL"] == f"/models/models/{folder}"
    assert f"--model=/models/models/{folder}" in services["vllm"]["command"]


def test_the_runs_file_is_read_by_who_trains_serves_and_checks() -> None:
    for profile, suffix in (("cpu", ""), ("gpu", "-gpu")):
        services = resolved(profile, settings={"RUN_FILE": "./run.toml"})
        for name in ("check", f"learner{suffix}", f"vllm{suffix}"):
            assert services[name]["environment"]["FULGURITE_RUN"] == "/run.toml"
            (mount,) = [one for one in services[name]["volumes"] if one["target"] == "/run.toml"]
            assert mount["source"] == str(ROOT / "run.toml")
            assert mount["read_only"]


def test_what_env_leaves_empty_the_runs_file_says() -> None:
    learner = resolved("cpu")["learner"]["environment"]
    config = load(None, learner)
    assert config.optimizer.lr == OptimizerConfig().lr
    former = resolved("cpu", settings={"FULGURITE_TRAINER_LR": "1e-3"})["learner"]["environment"]
    assert load(None, former).optimizer.lr == 1e-3


def test_a_second_policy_has_a_learner_of_its_own() -> None:
    for profile, name in (("cpu", "learner"), ("gpu", "learner-gpu")):
        services = resolved(
            profile, "docker-compose.second-policy.yml", settings={"SECOND_POLICY": "critic"}
        )
        second = services[f"learner-2{name.removeprefix('learner')}"]
        first = services[name]
        assert second["environment"]["FULGURITE_POLICY"] == "critic"
        assert first["environment"]["FULGURITE_POLICY"] == "policy"
        for key in ("image", "volumes", "networks", "depends_on", "healthcheck", "mem_limit"):
            assert second[key] == first[key]


def test_the_commands_of_an_upgrade_name_services_and_build_every_image() -> None:
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
    block = page.split("## Upgrade\n\n```bash\n")[1].split("```")[0]
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    options = {"--detach", "--wait"}
    named = {
        verb: {word for words in commands if words[2:3] == [verb] for word in words[3:]} - options
        for verb in ("build", "up")
    }
    # With `--profile` Compose ignores COMPOSE_PROFILES, so that vLLM's and the learner's images
    # would not be built.
    assert not [words for words in commands if "--profile" in words]
    assert ["docker", "compose", "build"] in commands
    every = resolved(EVERY_PROFILE)
    assert named["build"] | named["up"] <= every.keys()
    in_block = {words[4] for words in commands if words[2:4] == ["run", "--rm"]}
    built = {every[name]["image"] for name in named["build"] | resolved("cpu").keys()}
    assert {every[name]["image"] for name in in_block} <= built


def test_every_image_runs_as_a_user_and_builds_with_any_builder() -> None:
    assert not re.search(r"^RUN --mount|<<\s*['\"]?EOF|^# syntax=", DOCKERFILE, re.MULTILINE)
    users: dict[str, bool] = {}
    for stage in DOCKERFILE.split("\nFROM ")[1:]:
        header = stage.splitlines()[0].split()
        users[header[2]] = "USER 10001" in stage or users.get(header[0], False)
    for name in {
        service["build"]["target"]
        for service in {**resolved("cpu,gpu,rewards,cli")}.values()
        if "build" in service
    }:
        assert users[name], name
