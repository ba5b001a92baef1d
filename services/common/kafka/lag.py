"""How far a consumer is behind, as it knows without asking a broker."""

from __future__ import annotations

from collections import defaultdict

from confluent_kafka import Consumer, KafkaException

from services.common.kafka.settings import KafkaSettings
from services.common.runtime import metrics

LAG = "fulgurite_consumer_lag_records"


def watch_lag(consumer: Consumer, kafka: KafkaSettings) -> None:
    """Show the lag of a consumer's partitions by topic. One consumer per process."""
    metrics.watch(LAG, lambda: _lag(consumer, kafka))


def _lag(consumer: Consumer, kafka: KafkaSettings) -> dict[tuple[str, ...], float]:
    lag: defaultdict[tuple[str, ...], float] = defaultdict(float)
    try:
        for place in consumer.position(consumer.assignment()):
            _, end = consumer.get_watermark_offsets(place, cached=True)
            if place.offset >= 0 and end >= 0:
                name = place.topic.removeprefix(kafka.topic_prefix)
                lag[name,] += max(0, end - place.offset)
    except (KafkaException, RuntimeError):  # it is being closed
        return {}
    return dict(lag)
