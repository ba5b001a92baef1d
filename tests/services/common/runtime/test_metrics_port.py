"""A process shows what it counted on a port of its own, where it is told to."""

from __future__ import annotations

import os
import socket
import urllib.request

import pytest

from services.common.runtime import logs, metrics
from services.common.runtime.ending import run_service
from services.common.runtime.metrics_port import MetricsPortTaken, shown
from services.local_stack.ports import free_port

pytestmark = pytest.mark.usefixtures("logging_as_it_was")


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    chosen = free_port()
    monkeypatch.setenv("FULGURITE_METRICS_PORT", str(chosen))
    return chosen


def page(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return answer.read().decode().splitlines()


def test_counters_and_gauges_are_shown_by_their_labels(port: int) -> None:
    metrics.count("fulgurite_consumed_records_total", "some.topic", by=3)
    metrics.put("fulgurite_learner_update", {("test", "ess"): 0.5, ("test", "k3/age/0"): 0.25})
    metrics.watch("fulgurite_consumer_lag_records", lambda: {("some.topic",): 7.0})
    with shown() as open_port:
        assert open_port == port
        lines = page(port)
    assert 'fulgurite_consumed_records_total{topic="some.topic"} 3.0' in lines
    assert 'fulgurite_learner_update{metric="ess",policy="test"} 0.5' in lines
    assert 'fulgurite_learner_update{metric="k3/age/0",policy="test"} 0.25' in lines
    assert 'fulgurite_consumer_lag_records{topic="some.topic"} 7.0' in lines
    assert "# TYPE fulgurite_learner_update gauge" in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)


def test_a_gauge_that_is_set_again_forgets_its_former_series() -> None:
    metrics.put("fulgurite_learner_update", {("test", "old"): 1.0})
    metrics.put("fulgurite_learner_update", {("test", "new"): 1.0})
    assert metrics.values()["fulgurite_learner_update"] == {("test", "new"): 1.0}


def test_every_metric_of_the_code_has_as_many_labels_as_it_is_defined_with(port: int) -> None:
    with shown():
        page(port)
    for name, series in metrics.values().items():
        assert all(len(labels) == len(metrics.DEFINITIONS[name].labels) for labels in series)


def test_problems_in_the_log_are_counted() -> None:
    def count(level: str) -> float:
        return metrics.values().get("fulgurite_log_lines_total", {}).get((level,), 0)

    logs.configure("test", json=True)
    before = {level: count(level) for level in ("info", "warning", "error")}
    logger = logs.get("counted")
    logger.info("well")
    logger.warning("hm")
    logger.error("no")
    assert {level: count(level) - was for level, was in before.items()} == {
        "info": 0,
        "warning": 1,
        "error": 1,
    }


def test_problems_in_the_log_are_shown_before_there_is_one(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_values", {})
    logs.configure("test", json=True)
    with shown():
        lines = page(port)
    for level in ("warning", "error", "critical"):
        assert f'fulgurite_log_lines_total{{level="{level}"}} 0.0' in lines


def test_a_counter_that_is_started_again_keeps_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_values", {})
    metrics.start_counter("fulgurite_log_lines_total", "error")
    metrics.count("fulgurite_log_lines_total", "error")
    metrics.start_counter("fulgurite_log_lines_total", "error")
    assert metrics.values()["fulgurite_log_lines_total"] == {("error",): 1}


def test_no_port_is_opened_where_none_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FULGURITE_METRICS_PORT", raising=False)
    with shown() as port:
        assert port == 0


def test_a_port_that_is_taken_ends_the_service_with_what_to_do(
    port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("0.0.0.0", port)):
        with (
            pytest.raises(MetricsPortTaken, match=f"FULGURITE_METRICS_PORT={port} .* a port of"),
            shown(),
        ):
            pass
        assert run_service("learner", lambda: 0) == os.EX_CONFIG
    assert "Give each service on a machine a port of its own" in capsys.readouterr().err


def test_a_service_opens_its_port_and_closes_it_at_its_end(port: int) -> None:
    found: list[str] = []

    def main() -> None:
        found.extend(page(port))

    assert run_service("learner", main) == 0
    assert found
    with socket.create_server(("0.0.0.0", port)):
        pass


def test_the_gateway_opens_no_second_port(port: int) -> None:
    with socket.create_server(("0.0.0.0", port)):
        assert run_service("gateway", lambda: 0, shows_metrics=False) == 0
