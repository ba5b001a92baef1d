"""What all share that read `episodes` in a consumer group of their own to pay rewards: the
consumer and where it begins, the way out for what cannot be judged, what is chosen, start and end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from confluent_kafka import Consumer, KafkaException, TopicPartition
from pydantic import ValidationError

from fulgurite.topics import DEAD_LETTERS, EPISODES
from services.common.kafka.consumer import READ_TIMEOUT_S, Record, make_consumer, watermarks
from services.common.kafka.dead_letters import addressed, unusable
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs
from services.common.runtime.ending import settings_error_text
from services.common.runtime.process_secrets import hide_from_other_processes

logger = logs.get()

PartitionsListener = Callable[[Consumer, list[TopicPartition]], None]
"""Is called with partitions that a consumer gets, gives back or has lost."""


class Reader(Protocol):
    """Reads until stopped."""

    def stop(self) -> None:
        """Return from `run` soon."""

    async def run(self) -> None:
        """Until stopped."""


def parse_with_traffic(
    parser: argparse.ArgumentParser, arguments: Sequence[str], *, of_run: str, of_live: str
) -> argparse.Namespace:
    """Parse arguments, with the options `--run-id` and `--live` added, whose help is given. They
    choose the traffic to read, and exclude each other. `--since-ms`, for a run alone, is added too.
    """
    parser.add_argument("--run-id", default=None, help=of_run)
    parser.add_argument("--live", action="store_true", help=of_live)
    parser.add_argument(
        "--since-ms",
        type=int,
        default=None,
        metavar="MS",
        help="with --run-id: read episodes from this time on, in Unix milliseconds; default: all",
    )
    chosen = parser.parse_args(arguments)
    if chosen.live and chosen.run_id:
        parser.error("--live is for traffic that belongs to no run: give no --run-id")
    if chosen.since_ms is not None and not chosen.run_id:
        parser.error("--since-ms is the time when a run began: give its --run-id too")
    # Kafka takes -1 and -2 for the end and the beginning of a partition.
    if chosen.since_ms is not None and chosen.since_ms < 0:
        parser.error(f"--since-ms {chosen.since_ms} is negative: give Unix milliseconds")
    return chosen


def episodes_consumer(kafka: KafkaSettings, group_id: str, session_timeout_s: float) -> Consumer:
    """Subscribed to nothing yet."""
    return make_consumer(
        kafka,
        group_id,
        {"session.timeout.ms": int(session_timeout_s * 1000), "fetch.wait.max.ms": 500},
    )


def subscribe(
    consumer: Consumer, kafka: KafkaSettings, since_ms: int | None, **listeners: PartitionsListener
) -> None:
    """Subscribe to `episodes`; `listeners` are `on_revoke` and `on_lost`.

    `since_ms` (Unix milliseconds): a partition without a committed offset begins at the first
    record of this time or later, at its end if there is none. Without `since_ms` it begins at its
    first record. A poll that brings partitions then raises KafkaException if the broker does not
    answer.
    """
    if since_ms is not None:
        listeners["on_assign"] = partial(_assign_since, since_ms)
    consumer.subscribe([kafka.topic(EPISODES)], **listeners)


def _assign_since(since_ms: int, consumer: Consumer, partitions: list[TopicPartition]) -> None:
    places = consumer.committed(partitions, timeout=READ_TIMEOUT_S)
    _raise_error_of(places)
    starts = [place for place in places if place.offset >= 0]
    new = [place for place in places if place.offset < 0]
    if new:
        # The ends are read before the search: a record that is written between the two is found, or
        # lies behind the end. The end is a number, since a client looks up OFFSET_END later.
        ends = {place.partition: watermarks(consumer, place)[1] for place in new}
        asked = [TopicPartition(place.topic, place.partition, since_ms) for place in new]
        found = consumer.offsets_for_times(asked, timeout=READ_TIMEOUT_S)
        _raise_error_of(found)
        starts += [
            TopicPartition(
                place.topic,
                place.partition,
                place.offset if place.offset >= 0 else ends[place.partition],
            )
            for place in found
        ]
    consumer.assign(starts)


def _raise_error_of(places: list[TopicPartition]) -> None:
    for place in places:
        if place.error is not None:
            raise KafkaException(place.error)


async def bury(
    producer: EventProducer, kafka: KafkaSettings, group_id: str, stage: str, record: Record
) -> None:
    """A record of `episodes` that this group cannot judge goes to `dead.letters`."""
    letter = unusable(record, kafka.topic(EPISODES), group_id, stage=stage)
    for key, part in addressed(letter):
        await producer.publish(DEAD_LETTERS, key, part)


async def serve(name: str, make: Callable[[], Reader]) -> int:
    """Until SIGTERM or SIGINT; the exit code: 78 (EX_CONFIG) for what trying again does not mend,
    with a line that says what.

    `make` raises ValueError for a setting that cannot be used or a function that cannot be loaded.
    Raises what it and the reader raise else: starting again may help.
    """
    logs.configure(name)
    hide_from_other_processes()
    try:
        reader = make()
    except ValueError as error:
        logger.error(
            "cannot start",
            error=settings_error_text(error) if isinstance(error, ValidationError) else str(error),
        )
        return os.EX_CONFIG
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, reader.stop)
    await reader.run()
    return 0
