"""One engine and one deployment for all tests here, taken away afterwards."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.compose.deployment import Deployment
from tests.compose.engine import NoEngine, compose_command, engine, say


@pytest.fixture(scope="session")
def deployment() -> Generator[Deployment]:
    """Images built, nothing started yet. Skips with a reason where no container can run."""
    if compose_command() is None:
        pytest.skip(
            "no Docker Compose for this platform: install it, or set DOCKER_COMPOSE to its binary"
        )
    try:
        with engine() as environment:
            made = Deployment(environment)
            made.down()
            say("building the images (minutes the first time)")
            made.must(
                "--profile",
                "cpu",
                "--profile",
                "cli",
                "--profile",
                "rewards",
                "build",
                timeout_s=2400,
            )
            for line in sorted(
                made.docker("images", "--format", "{{.Repository}} {{.Size}}").splitlines()
            ):
                if line.startswith("fulgurite-"):
                    say(f"  {line}")
            try:
                yield made
            finally:
                made.down()
    except NoEngine as reason:
        pytest.skip(str(reason))
