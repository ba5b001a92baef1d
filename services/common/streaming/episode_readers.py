"""What all share that read `episodes` in a consumer group of their own to pay rewards: the
consumer, the way out for what cannot be judged, what is chosen, start and end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from typing import Protocol

from confluent_kafka import Consumer
from pydantic import ValidationError

from fulgurite.topics import DEAD_LETTERS, EPISODES
from services.common.kafka.consumer import Record, make_consumer
from services.common.kafka.dead_letters import addressed, unusable
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs
from services.common.runtime.ending import settings_error_text
from services.common.runtime.process_secrets import hide_from_other_processes

logger = logs.get()


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
    choose the traffic to read, and exclude each other.
    """
    parser.add_argument("--run-id", default=None, help=of_run)
    parser.add_argument("--live", action="store_true", help=of_live)
    chosen = parser.parse_args(arguments)
    if chosen.live and chosen.run_id:
        parser.error("--live is for traffic that belongs to no run: give no --run-id")
    return chosen


def episodes_consumer(kafka: KafkaSettings, group_id: str, session_timeout_s: float) -> Consumer:
    """Subscribed to nothing yet."""
    return make_consumer(
        kafka,
        group_id,
        {"session.timeout.ms": int(session_timeout_s * 1000), "fetch.wait.max.ms": 500},
    )


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
