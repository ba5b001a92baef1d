"""Readers of `episodes`: which traffic they read, and where they begin."""

from __future__ import annotations

import argparse

import pytest
from confluent_kafka import Consumer, TopicPartition

from services.common.kafka.settings import KafkaSettings
from services.common.streaming.episode_readers import parse_with_traffic, subscribe
from tests.services.memory_episodes import MemoryConsumer, MemoryEpisodes

OLD, SINCE, NEW = 1_000, 2_000, 3_000


class Growing(MemoryConsumer):
    """A record comes to partition 0 just after its end was asked for."""

    def __init__(self, log: MemoryEpisodes) -> None:
        super().__init__(log)
        self._episodes = log

    def get_watermark_offsets(self, partition: TopicPartition, **asked: object) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ends = super().get_watermark_offsets(partition, **asked)
        if partition.partition == 0:
            self._episodes.append(0, b"new", at=NEW)
        return ends


def read(consumer: MemoryConsumer, since_ms: int | None, *partitions: int) -> list[bytes]:
    """Everything that a new consumer of the group reads."""
    subscribe(consumer, KafkaSettings(topic_prefix=""), since_ms, on_revoke=_ignore)
    consumer.give(*partitions)
    assert consumer.poll(0) is None
    values: list[bytes] = []
    while (message := consumer.poll(0)) is not None:
        values.append(message.value() or b"")
    return values


def _ignore(_consumer: Consumer, _partitions: list[TopicPartition]) -> None:
    """Nothing to do."""


@pytest.fixture
def log() -> MemoryEpisodes:
    made = MemoryEpisodes()
    made.append(0, b"old 0", b"old 1", at=OLD)
    made.append(1, b"old 2", at=OLD)
    made.append(1, b"new 1", at=NEW)
    return made


def test_a_group_without_offsets_begins_at_the_time(log: MemoryEpisodes) -> None:
    assert read(MemoryConsumer(log), SINCE, 0, 1, 2) == [b"new 1"]


def test_a_committed_offset_is_kept(log: MemoryEpisodes) -> None:
    log.committed = {0: 1}
    assert read(MemoryConsumer(log), SINCE, 0, 1) == [b"old 1", b"new 1"]
    log.committed = {0: 1, 1: 0}
    assert read(MemoryConsumer(log), SINCE, 0, 1) == [b"old 1", b"old 2", b"new 1"]


def test_without_a_time_it_begins_at_the_first_record(log: MemoryEpisodes) -> None:
    assert read(MemoryConsumer(log), None, 0, 1) == [b"old 0", b"old 1", b"old 2", b"new 1"]


def test_what_comes_while_it_looks_for_the_beginning_is_read(log: MemoryEpisodes) -> None:
    assert read(Growing(log), SINCE, 0, 1) == [b"new", b"new 1"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--since-ms", "5"], "--since-ms is the time when a run began"),
        (["--run-id", "r", "--since-ms", "-1"], "--since-ms -1 is negative"),
        (["--run-id", "r", "--live"], "--live is for traffic that belongs to no run"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    with pytest.raises(SystemExit):
        parse_with_traffic(argparse.ArgumentParser(), arguments, of_run="r", of_live="l")
    assert problem in capsys.readouterr().err


def test_a_run_and_its_time_are_chosen() -> None:
    chosen = parse_with_traffic(
        argparse.ArgumentParser(),
        ["--run-id", "r", "--since-ms", "5"],
        of_run="r",
        of_live="l",
    )
    assert (chosen.run_id, chosen.since_ms) == ("r", 5)
