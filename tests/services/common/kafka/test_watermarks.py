"""A partition's ends while a broker dies: what passes is waited for, a topic that is not there is
told at once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from services.common.kafka.consumer import watermarks

UNKNOWN = -190
"""Local: Unknown partition."""
DESTROYED = -137
"""Local: Broker handle destroyed without termination."""
PLACE = TopicPartition("llm.calls", 0)


class Cluster:
    """Answers with these errors, one after another, then with the ends."""

    def __init__(self, errors: Sequence[int], *, metadata: int | None = 0) -> None:
        """`metadata`: the error that the topic's metadata bears, 0 for none; None: no broker
        answers.
        """
        self.errors = list(errors)
        self.metadata = metadata

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        if self.errors:
            raise KafkaException(KafkaError(self.errors.pop(0)))
        return 3, 7

    def list_topics(self, topic: str, timeout: float) -> object:
        if self.metadata is None:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))  # pyright: ignore[reportPrivateUsage]
        error = KafkaError(self.metadata) if self.metadata else None
        return SimpleNamespace(topics={topic: SimpleNamespace(error=error)})

    def watermarks(self, timeout_s: float = 30.0) -> tuple[int, int]:
        return watermarks(cast(Consumer, self), PLACE, timeout_s)


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    def pause(_seconds: float) -> None:
        """None: nothing has to pass here."""

    monkeypatch.setattr(time, "sleep", pause)


MOVING = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
)


@pytest.mark.parametrize("code", [UNKNOWN, DESTROYED, *MOVING])
@pytest.mark.parametrize("metadata", [0, KafkaError.LEADER_NOT_AVAILABLE, None])
def test_a_dying_broker_is_waited_for(code: int, metadata: int | None) -> None:
    assert Cluster([code, code], metadata=metadata).watermarks() == (3, 7)


@pytest.mark.parametrize("code", [UNKNOWN, DESTROYED])
def test_not_for_ever(code: int) -> None:
    with pytest.raises(KafkaException):
        Cluster([code, code]).watermarks(timeout_s=-1.0)


def test_a_topic_that_a_broker_does_not_have_is_told_at_once() -> None:
    cluster = Cluster([UNKNOWN] * 2, metadata=KafkaError.UNKNOWN_TOPIC_OR_PART)
    with pytest.raises(KafkaException):
        cluster.watermarks()
    assert len(cluster.errors) == 1


def test_another_error_is_told_at_once() -> None:
    cluster = Cluster([KafkaError.TOPIC_AUTHORIZATION_FAILED] * 2)
    with pytest.raises(KafkaException):
        cluster.watermarks()
    assert len(cluster.errors) == 1
