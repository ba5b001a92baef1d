"""What the selector counts is shown before there is any of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest

from services.common.kafka.settings import KafkaSettings
from services.common.runtime import metrics
from services.selector.selector import Selector


def test_each_kind_of_event_is_counted_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.common.runtime.metrics._values", {})
    aliases = [cast(Any, SimpleNamespace(alias=alias)) for alias in ("writer", "critic")]
    # It connects to nothing here, and has no thread that a test would have to end.
    monkeypatch.setattr("services.selector.selector.EventProducer", mock.Mock())
    Selector(aliases, KafkaSettings(), 1.0)
    assert metrics.values()["fulgurite_selector_events_total"] == {
        (alias, kind): 0
        for alias in ("writer", "critic")
        for kind in ("claim", "shares", "verdict", "route")
    }
