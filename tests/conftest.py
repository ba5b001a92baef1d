"""Settings of all tests: property tests assert no timings, tracebacks in logs are plain, xdist's workers share tests by engine, and coverage is measured where it counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadGroupScheduling

# A busy machine is no failure.
settings.register_profile("fulgurite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fulgurite")

_COSTLY_ENGINES = ("vllm_tiny", "kafka3")
"""Fixtures that only one worker starts: vLLM takes 4 GB and a minute of a core, three brokers 1 GB."""

_CORE = Path(__file__).parent / "fulgurite"


def pytest_runtest_setup() -> None:
    """Log errors with a plain traceback, as services do. Structlog's default prints every local variable: seconds for large ones."""
    if not structlog.is_configured():
        plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])


class _ByEngineOrFile(LoadGroupScheduling):
    """One worker gets all tests of a costly engine; the others go file by file."""

    def _split_scope(self, nodeid: str) -> str:
        group = super()._split_scope(nodeid)
        return nodeid.partition("::")[0] if group == nodeid else group


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadGroupScheduling | None:
    """With `--dist loadgroup`."""
    return _ByEngineOrFile(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure coverage in the core's own tests alone: under its tracer Python is several times slower.

    In xdist's workers, put those first, before other tests fill the core's caches, and then what needs engines. The short
    tests fill the end, so that no worker idles for long.
    """
    for item in items:
        if not item.path.is_relative_to(_CORE):
            item.add_marker(pytest.mark.no_cover)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    for item in items:
        engine = _costly_engine(item)
        if engine is not None:
            item.add_marker(pytest.mark.xdist_group(engine))
    items.sort(key=_rank)


def _costly_engine(item: pytest.Item) -> str | None:
    used: list[str] = getattr(item, "fixturenames", [])
    return next((name for name in _COSTLY_ENGINES if name in used), None)


def _rank(item: pytest.Item) -> int:
    if item.get_closest_marker("no_cover") is None:
        return 0
    engine = _costly_engine(item)
    if engine is not None:
        return 1 + _COSTLY_ENGINES.index(engine)
    return 1 + len(_COSTLY_ENGINES) + (item.get_closest_marker("engine") is None)
