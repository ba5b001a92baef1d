"""One deployment of the shipped compose file, under a project name and ports of its own, with the
test's override.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from services.common.kafka.settings import KafkaSettings
from services.local_stack.ports import free_ports
from tests.compose.engine import HERE, ROOT, compose_command, say

PROJECT = "fulgurite-test"
FILES = (ROOT / "docker-compose.yml", ROOT / "docker-compose.kafka-port.yml", HERE / "override.yml")


class Deployment:
    """What a person does with `docker compose`, and what a machine does to containers."""

    def __init__(self, environment: Mapping[str, str], files: tuple[Path, ...] = FILES) -> None:
        self.gateway_port, self.kafka_port = free_ports(2)
        self.files = files
        # torch without CUDA comes from an index of its own, which not every machine that runs tests
        # may reach.
        self.settings = {
            "GATEWAY_PORT": str(self.gateway_port),
            "KAFKA_PORT": str(self.kafka_port),
            "COMPOSE_PROFILES": "cpu",
        }
        self.settings["TORCH_BACKEND"] = os.environ.get(
            "TORCH_BACKEND", "" if "DOCKER_HOST" in environment else "cpu"
        )
        self.environment = {**os.environ, **environment}
        self.keys: dict[str, str] = {}

    @property
    def url(self) -> str:
        """The gateway's, without `/v1`."""
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def kafka(self) -> KafkaSettings:
        """The log, through the port that the override publishes."""
        return KafkaSettings(bootstrap_servers=f"127.0.0.1:{self.kafka_port}")

    def compose(
        self, *arguments: str, settings: Mapping[str, str] | None = None, timeout_s: float = 900
    ) -> subprocess.CompletedProcess[str]:
        """Run Compose; nothing is raised for its exit status."""
        files = [part for file in self.files for part in ("--file", str(file))]
        argv = [
            *(compose_command() or ["docker", "compose"]),
            "--project-name",
            PROJECT,
            *files,
            "--progress",
            "plain",
            *arguments,
        ]
        environment = {**self.environment, **self.settings, **(settings or {})}
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=ROOT,
            timeout=timeout_s,
        )

    def must(
        self, *arguments: str, settings: Mapping[str, str] | None = None, timeout_s: float = 900
    ) -> str:
        """`compose` that has to end well; its standard output."""
        done = self.compose(*arguments, settings=settings, timeout_s=timeout_s)
        assert done.returncode == 0, (
            f"docker compose {' '.join(arguments)}: "
            f"{done.stdout[-3000:]}{done.stderr[-3000:]}\n{self._troubled()}"
        )
        return done.stdout

    def docker(self, *arguments: str) -> str:
        """Run `docker`; its standard output."""
        return subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, check=True, env=self.environment
        ).stdout

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command in the container of the command line."""
        return self.compose("run", "--rm", "--no-deps", "-T", "cli", *arguments)

    def read_keys(self) -> None:
        """As docs/how-to/deploy.md has a person do it: `eval "$(docker compose run --rm cli
        keys)"`.
        """
        lines = self.cli("keys").stdout.splitlines()
        self.keys = dict(line.removeprefix("export ").split("=", 1) for line in lines)

    def inspect(self, service: str) -> dict[str, Any]:
        """The container of a service."""
        return json.loads(self.docker("inspect", f"{PROJECT}-{service}-1"))[0]

    def healthy(self, service: str) -> bool:
        """Whether its health check says so now."""
        with suppress(subprocess.CalledProcessError):
            return self.inspect(service)["State"].get("Health", {}).get("Status") == "healthy"
        return False

    def kill(self, service: str) -> float:
        """kill -9 of the container's process, as a crash; returns the seconds until it is healthy
        again, started anew.
        """
        before = self.inspect(service)["State"]
        began = time.monotonic()
        os.kill(before["Pid"], signal.SIGKILL)
        wait_for(
            lambda: self.inspect(service)["State"]["StartedAt"] != before["StartedAt"],
            60,
            f"{service} is started again",
        )
        wait_for(lambda: self.healthy(service), 420, f"{service} is healthy again")
        return time.monotonic() - began

    def logs(self, service: str) -> str:
        """All that a service said."""
        return self.compose("logs", "--no-log-prefix", service).stdout

    def leftovers(self) -> str:
        """Containers, volumes and networks of this project."""
        label = f"label=com.docker.compose.project={PROJECT}"
        return "".join(
            self.docker(*command, "--filter", label, "--quiet")
            for command in (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        )

    def down(self) -> None:
        """Everything of it away, volumes too."""
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "20")

    def _troubled(self) -> str:
        listed = self.compose("ps", "--all").stdout
        return listed + "".join(
            self.compose("logs", "--tail", "15", name).stdout
            for name in ("check", "topics", "model", "vllm", "learner")
        )


def balanced(deployment: Deployment) -> dict[str, int]:
    """The books by the command line's container: exit status 0, nothing missing, nothing twice; the
    terms.
    """
    done = deployment.cli("fulgurite", "ledger", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    books = json.loads(done.stdout)
    assert books["remainder"] == 0
    say(f"  the ledger balances: {books['actions']} actions, {books['terms']}")
    return books["terms"]


def wait_for(done: Callable[[], bool], seconds: float, what: str) -> None:
    """Look every half second; fails with `what` did not come to pass."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.5)


def timed(what: str, act: Callable[[], object]) -> float:
    """Do it and tell how long it took."""
    say(f"{what} ...")
    began = time.monotonic()
    act()
    seconds = time.monotonic() - began
    say(f"{what}: {seconds:.1f} s")
    return seconds
