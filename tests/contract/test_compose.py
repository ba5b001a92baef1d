"""docker-compose.yml is what Compose accepts, and keeps what it promises: pinned, healthy, not root, nothing published but on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
KEYS = {"FULGURITE_SIGNING_KEYS": "k1:test", "FULGURITE_ADMIN_KEY": "test"}
ONE_SHOT = {"topics", "model"}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def compose_command() -> list[str] | None:
    named = os.environ.get("DOCKER_COMPOSE")
    if named:
        return [named]
    standalone = shutil.which("docker-compose", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if standalone:
        return [standalone]
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [docker, "compose"]
    return None


def config(profiles: str, keys: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = compose_command()
    if command is None:
        pytest.skip("no Docker Compose for this platform: install it, or set DOCKER_COMPOSE to its binary")
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "COMPOSE_PROFILES": profiles, **keys}
    argv = [*command, "-f", str(ROOT / "docker-compose.yml"), "config", "--format", "json"]
    return subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


@pytest.fixture(scope="module", params=["cpu,rewards", "gpu,rewards"])
def services(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    done = config(request.param, KEYS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["services"]


def test_every_lasting_service_has_a_health_check_and_starts_again(services: dict[str, dict[str, Any]]) -> None:
    for name in services.keys() - ONE_SHOT:
        assert services[name]["healthcheck"]["test"], name
        assert services[name]["restart"] == "unless-stopped", name


def test_images_are_pinned_and_targets_exist(services: dict[str, dict[str, Any]]) -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    for name, service in services.items():
        if "build" in service:
            assert service["build"]["target"] in targets, name
        else:
            assert re.search(r":\d+\.\d+", service["image"]), name


def test_only_loopback_is_published_and_never_vllm(services: dict[str, dict[str, Any]]) -> None:
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert set(published) == {"gateway", "kafka"}
    assert all(port["host_ip"] == "127.0.0.1" for ports in published.values() for port in ports)


def test_missing_secrets_are_named_with_what_to_do() -> None:
    done = config("cpu", {})
    assert done.returncode != 0
    assert "FULGURITE_ADMIN_KEY" in done.stderr or "FULGURITE_SIGNING_KEYS" in done.stderr
    assert "make keys" in done.stderr


def test_no_secret_is_in_the_settings_file() -> None:
    lines = [line for line in (ROOT / ".env").read_text().splitlines() if line and not line.startswith("#")]
    assert not [line for line in lines if re.match(r".*(KEY|SECRET|PASSWORD)", line.partition("=")[0])]


def test_every_image_runs_as_a_user_and_builds_with_any_builder() -> None:
    assert not re.search(r"^RUN --mount|<<\s*['\"]?EOF|^# syntax=", DOCKERFILE, re.MULTILINE)
    stages = DOCKERFILE.split("\nFROM ")[1:]
    users: dict[str, bool] = {}
    for stage in stages:
        header = stage.splitlines()[0].split()
        users[header[2]] = "USER 10001" in stage or users.get(header[0], False)
    assert all(found for target, found in users.items() if target != "base"), users
