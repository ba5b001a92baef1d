"""Shows a process's metrics to Prometheus, on a port of its own (FULGURITE_METRICS_PORT)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.runtime import logs, metrics

logger = logs.get()


class MetricsSettings(BaseSettings):
    """Where metrics are shown."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_", extra="ignore", use_attribute_docstrings=True
    )

    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port on which a service shows its metrics to Prometheus, under any path and without a key, on
    all interfaces; 0: none. Services on one machine need a port each. The gateway has `/metrics` on
    its own port instead."""


class MetricsPortTaken(ValueError):
    """The port cannot be opened."""


@contextmanager
def shown() -> Generator[int]:
    """Show the process's metrics while the context lasts; yields the port, 0 without one.

    Raises MetricsPortTaken, ValidationError.
    """
    port = MetricsSettings().metrics_port
    if not port:
        yield 0
        return
    # Imported here, because most processes have no such port.
    from prometheus_client import (
        CollectorRegistry,
        PlatformCollector,
        ProcessCollector,
        start_http_server,
    )
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    class Values:
        """What was counted, as Prometheus has it."""

        def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
            for name, series in metrics.values().items():
                kind, labels, meaning = metrics.DEFINITIONS[name]
                made = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
                family = made(name, meaning, labels=labels)
                for values, value in sorted(series.items()):
                    family.add_metric(values, value)
                yield family

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(Values())
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        raise MetricsPortTaken(
            f"FULGURITE_METRICS_PORT={port} cannot be opened: {error.strerror}. Give each service "
            "on a machine a port of its own, or 0 for none"
        ) from error
    logger.info("metrics are shown", port=port)
    try:
        yield port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
