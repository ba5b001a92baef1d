"""What the producer counts is shown before there is any of it."""

from __future__ import annotations

import pytest

from fulgurite.avro.codec import Codec
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import metrics


def test_dead_letters_are_counted_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.common.runtime.metrics._values", {})
    EventProducer(KafkaSettings(bootstrap_servers="127.0.0.1:9"), Codec(), "test").close()
    assert metrics.values()["fulgurite_published_events_total"] == {("dead.letters",): 0}
