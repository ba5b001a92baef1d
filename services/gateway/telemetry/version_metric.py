"""`fulgurite_gateway_served_version`: the versions that each backend serves, as its applier last
proved, read whenever it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from services.gateway.upstream.policies import PolicyView


class ServedVersions(Collector):
    """One series for each version that a backend holds; its value is 1."""

    def __init__(self, view: PolicyView) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        family = GaugeMetricFamily(
            "fulgurite_gateway_served_version",
            "What a backend serves.",
            labels=("policy", "backend", "version"),
        )
        for policy, backend, version in self._view.held():
            family.add_metric((policy, backend, version), 1)
        yield family
