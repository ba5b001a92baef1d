"""The Grafana board shows the metrics that services have, and all that matter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from services.common.runtime.metrics import DEFINITIONS
from services.gateway.telemetry.metrics import Metrics
from services.gateway.telemetry.version_metric import ServedVersions
from services.learner.metrics import METRICS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "grafana"
BOARD = json.loads((FOLDER / "fulgurite.json").read_text())
PANELS: list[dict[str, Any]] = [one for one in BOARD["panels"] if one["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
"""Metrics of Prometheus' own collectors."""
APART = {
    "fulgurite_gateway_spool_bytes",
    "fulgurite_gateway_delta_saved_bytes_total",
    "fulgurite_gateway_claim_checks_total",
    "fulgurite_gateway_claim_bytes_total",
    "fulgurite_gateway_responses_total",
}
"""Metrics of the gateway that are for a closer look."""


def gateway_names() -> set[str]:
    """The metrics of the gateway, by the names that Prometheus knows; histograms by their own."""
    metrics = Metrics()
    metrics.watch_spool(lambda: 0, lambda: 0, lambda: 0)
    names = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
        if not family.name.startswith("process_")
    }
    nothing = ServedVersions(cast(Any, SimpleNamespace(held=tuple)))
    return names | {family.name for family in nothing.collect()}


def shown_names() -> set[str]:
    return {
        re.sub(r"_bucket$", "", name)
        for expression in EXPRESSIONS
        for name in re.findall(r"\b(?:fulgurite|process)_\w+", expression)
    }


def test_every_metric_on_the_board_exists() -> None:
    assert shown_names() <= gateway_names() | DEFINITIONS.keys() | PROCESS


def test_every_metric_that_matters_is_on_the_board() -> None:
    assert (gateway_names() - APART) | DEFINITIONS.keys() <= shown_names()


def test_the_gateway_shows_its_process_too() -> None:
    lines = Metrics().render().decode().splitlines()
    assert {line.split()[0] for line in lines if line.startswith("process_")} >= PROCESS


def test_learner_metrics_on_the_board_are_reported() -> None:
    patterns = [
        pattern
        for expression in EXPRESSIONS
        for pattern in re.findall(r'metric=~?"([^"]+)"', expression)
    ]
    assert patterns
    for pattern in patterns:
        assert any(re.fullmatch(pattern, name) for name in METRICS), pattern


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_says_what_it_shows_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    if panel["type"] == "timeseries":
        assert defaults["custom"]["axisLabel"]


def test_panels_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert max(x for x, _ in own) < 24
        assert not own & taken, panel["title"]
        taken |= own


def test_prometheus_scrapes_each_service_at_a_port_of_its_own() -> None:
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    targets = [target for job in jobs for one in job["static_configs"] for target in one["targets"]]
    assert len(set(targets)) == len(jobs)
    services = {
        name
        for path in (ROOT / "services").rglob("*.py")
        for name in re.findall(r'run_service\("([a-z-]+)"', path.read_text())
    }
    assert {"gateway", "learner", "selector"} < services
    assert {job["job_name"] for job in jobs} == services


def test_the_page_names_the_ports_that_are_scraped() -> None:
    ports = re.findall(r"127\.0\.0\.1:(91\d\d)", (FOLDER / "prometheus.yml").read_text())
    page = (ROOT / "docs" / "how-to" / "grafana.md").read_text()
    assert f"ports {min(ports)} to {max(ports)}" in " ".join(page.split())
