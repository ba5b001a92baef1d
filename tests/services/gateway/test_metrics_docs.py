"""docs/reference/operations.md names every metric of the gateway."""

from __future__ import annotations

import re
from pathlib import Path

from services.gateway.telemetry.metrics import Metrics

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "operations.md").read_text()
PREFIX = "fulgurite_gateway_"


def test_every_metric_is_on_the_page() -> None:
    metrics = [metric for metric in Metrics().registry.collect() if metric.name.startswith(PREFIX)]
    names = {
        metric.name.removeprefix(PREFIX) + ("_total" if metric.type == "counter" else "")
        for metric in metrics
    }
    assert names
    named = set(re.findall(r"`([a-z_]+)(?:\{[^`]*\})?`", PAGE))
    assert not names - named
