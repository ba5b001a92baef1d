"""Counts what a process does, for its metrics port (`services.common.runtime.metrics_port`).

Counting costs a dictionary's access, whether the port is open or not. Thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

Series = tuple[str, ...]
"""The values of a metric's labels."""


class Definition(NamedTuple):
    """A metric."""

    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    meaning: str


DEFINITIONS: Mapping[str, Definition] = {
    "fulgurite_consumed_records_total": Definition(
        "counter", ("topic",), "Records that were read and handled"
    ),
    "fulgurite_published_events_total": Definition(
        "counter",
        ("topic",),
        "Events that Kafka acknowledged; those of `dead.letters` are what could not be used",
    ),
    "fulgurite_consumer_lag_records": Definition(
        "gauge", ("topic",), "Records behind the end of the process's partitions"
    ),
    "fulgurite_log_lines_total": Definition(
        "counter", ("level",), "Lines of the log by level: `warning`, `error`, `critical`"
    ),
    "fulgurite_applied_total": Definition(
        "counter",
        ("policy", "outcome"),
        "Versions that the applier reported: `applied`, `failed`, `retired`",
    ),
    "fulgurite_selector_events_total": Definition(
        "counter",
        ("alias", "kind"),
        "Events that the selector wrote: `claim`, `shares`, `verdict`, `route`",
    ),
    "fulgurite_selector_share": Definition(
        "gauge", ("alias", "variant"), "Shares that the selector decided last, in any mode"
    ),
    "fulgurite_learner_batches_total": Definition(
        "counter",
        ("policy", "outcome"),
        "Batches of the learner: `trained`, or `refused` because no step was made",
    ),
    "fulgurite_learner_groups": Definition(
        "gauge",
        ("policy", "state"),
        "Groups that the learner holds: `incomplete`, `complete`, and of these `ready`, which "
        "teach something",
    ),
    "fulgurite_learner_step": Definition("gauge", ("policy",), "Step of the newest version"),
    "fulgurite_console_index_bytes": Definition(
        "gauge", (), "Bytes of the console's index that hold data"
    ),
    "fulgurite_learner_update": Definition(
        "gauge", ("policy", "metric"), "The newest version's metrics (docs/reference/metrics.md)"
    ),
}
"""Every metric of the services without HTTP, by its name."""

_lock = threading.Lock()
_values: dict[str, dict[Series, float]] = {}
_asked: dict[str, Callable[[], Mapping[Series, float]]] = {}


def count(name: str, *labels: str, by: float = 1) -> None:
    """Add to a counter."""
    with _lock:
        series = _values.setdefault(name, {})
        series[labels] = series.get(labels, 0) + by


def start_counter(name: str, *labels: str) -> None:
    """Show a counter from now on, with 0 if it has counted nothing.

    For what is rare and matters: Prometheus' `rate` does not see the first sample of a series.
    """
    count(name, *labels, by=0)


def put(name: str, values: Mapping[Series, float]) -> None:
    """Set all series of a gauge."""
    with _lock:
        _values[name] = dict(values)


def watch(name: str, ask: Callable[[], Mapping[Series, float]]) -> None:
    """Have a gauge's series asked for whenever they are shown, in another thread."""
    _asked[name] = ask


def values() -> dict[str, dict[Series, float]]:
    """Every metric that has a value, with its series."""
    with _lock:
        found = {name: dict(series) for name, series in _values.items()}
    for name, ask in list(_asked.items()):
        found[name] = dict(ask())
    return {name: series for name, series in found.items() if series}
