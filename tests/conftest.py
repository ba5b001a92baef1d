"""Settings of all tests: property tests assert no timings, because a busy machine is no failure, and tracebacks in logs are plain."""

from __future__ import annotations

import structlog
from hypothesis import HealthCheck, settings

settings.register_profile("fulgurite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fulgurite")


def pytest_runtest_setup() -> None:
    """Log errors as services do, with a plain traceback. Structlog's default prints every local variable, which takes seconds for large ones."""
    if not structlog.is_configured():
        plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])
