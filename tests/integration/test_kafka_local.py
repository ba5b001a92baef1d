"""The local Kafka keeps what it acknowledged, whatever happens to its processes."""

# confluent-kafka annotates its futures in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # pyright: ignore[reportPrivateImportUsage]

from services.local_stack.errors import ChecksumMismatch, LayoutChanged, SettingsInvalid
from services.local_stack.kafka_local import LocalKafka, kafka_jars

pytestmark = pytest.mark.engine
logger = logging.getLogger(__name__)


def create(kafka: LocalKafka, topic: str, replication: int) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}, logger=logger)  # pyright: ignore[reportCallIssue]
    made = admin.create_topics([NewTopic(topic, num_partitions=2, replication_factor=replication)])
    for future in made.values():
        future.result()


def producer(kafka: LocalKafka, timeout_ms: int = 60_000) -> Producer:
    options = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "enable.idempotence": True,
        "delivery.timeout.ms": timeout_ms,
    }
    return Producer(options, logger=logger)


def produce(kafka: LocalKafka, topic: str, values: list[str]) -> None:
    client = producer(kafka)
    for value in values:
        client.produce(topic, value.encode())
    assert client.flush(60) == 0


def everything(kafka: LocalKafka, topic: str, count: int) -> list[str]:
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": "reader",
            "auto.offset.reset": "earliest",
        },
        logger=logger,
    )
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in (0, 1)])
        found: list[str] = []
        while len(found) < count:
            messages = consumer.consume(count, timeout=30)
            assert messages, f"{len(found)} of {count}"
            found += [(message.value() or b"").decode() for message in messages]
        return sorted(found)
    finally:
        consumer.close()


def test_killed_and_started_again(kafka: LocalKafka, topic_prefix: str) -> None:
    topic = f"{topic_prefix}kept"
    create(kafka, topic, 1)
    values = [f"{number:04}" for number in range(1000)]
    produce(kafka, topic, values)
    kafka.kill(0)
    kafka.restart(0)
    assert everything(kafka, topic, 1000) == values


def test_a_data_folder_outlives_its_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "Jürgen's \\ 数据 🗲"
    monkeypatch.setenv("LC_ALL", "POSIX")
    with LocalKafka(data, heap_mb=256) as first:
        create(first, "kept", 1)
        produce(first, "kept", ["a", "b"])
    assert (data / "broker-1" / "log" / "meta.properties").is_file()
    with LocalKafka(data, heap_mb=256) as second:
        assert second.bootstrap_servers == first.bootstrap_servers, "its port too"
        assert everything(second, "kept", 2) == ["a", "b"]


def test_of_three_one_may_die_and_two_may_not_be_missing(
    kafka3: LocalKafka, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}replicated"
    create(kafka3, topic, 3)
    kafka3.kill(0)
    produce(kafka3, topic, ["with two"])
    kafka3.restart(0)
    produce(kafka3, topic, ["with three"])
    kafka3.suspend(1)
    kafka3.suspend(2)
    try:
        client = producer(kafka3)
        client.produce(topic, b"with one")
        assert client.flush(5) == 1
    finally:
        kafka3.resume(1)
        kafka3.resume(2)
    assert client.flush(60) == 0
    assert everything(kafka3, topic, 3) == ["with one", "with three", "with two"]


def test_topics_are_not_made_by_accident(kafka: LocalKafka, topic_prefix: str) -> None:
    failures: list[object] = []
    client = producer(kafka, timeout_ms=2000)
    client.produce(
        f"{topic_prefix}nothing", b"lost", on_delivery=lambda error, _: failures.append(error)
    )
    client.flush(30)
    assert len(failures) == 1
    assert failures[0] is not None


def test_a_jar_that_was_changed_is_refused(tmp_path: Path) -> None:
    for jar in kafka_jars():
        (tmp_path / jar.name).symlink_to(jar)
    changed = tmp_path / "kafka-clients-4.3.1.jar"
    changed.unlink()
    changed.write_bytes(b"something else")
    with pytest.raises(ChecksumMismatch, match="kafka-clients"):
        kafka_jars(tmp_path)


def test_a_folder_made_for_another_number_of_brokers_is_refused(tmp_path: Path) -> None:
    for node in (1, 2, 3):
        (tmp_path / f"broker-{node}").mkdir()
    with pytest.raises(LayoutChanged, match="--brokers 3"):
        LocalKafka(tmp_path)
    LocalKafka(tmp_path, brokers=3).stop()


def test_a_folder_that_kafka_would_take_for_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="comma"):
        LocalKafka(tmp_path / "a,b")
