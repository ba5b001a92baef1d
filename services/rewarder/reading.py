"""What all share that read `episodes` in a consumer group of their own to pay rewards: the consumer, the way out for what cannot be judged,
and the end by a signal.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Protocol

from confluent_kafka import Consumer

from fulgurite.topics import DEAD_LETTERS, EPISODES
from services.dead_letters import key_of, unusable
from services.kafka import EventProducer, KafkaSettings, Record, make_consumer


class Reader(Protocol):
    """Reads until stopped."""

    def stop(self) -> None:
        """Return from `run` soon."""

    async def run(self) -> None:
        """Until stopped."""


def episodes_consumer(kafka: KafkaSettings, group_id: str, session_timeout_s: float) -> Consumer:
    """Subscribed to nothing yet."""
    return make_consumer(kafka, group_id, {"session.timeout.ms": int(session_timeout_s * 1000), "fetch.wait.max.ms": 500})


async def bury(producer: EventProducer, kafka: KafkaSettings, group_id: str, stage: str, record: Record) -> None:
    """A record of `episodes` that this group cannot judge goes to `dead.letters`."""
    letter = unusable(record, kafka.topic(EPISODES), group_id, stage=stage)
    await producer.publish(DEAD_LETTERS, key_of(letter), letter)


async def run_until_signal(reader: Reader) -> None:
    """SIGTERM and SIGINT stop it."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, reader.stop)
    await reader.run()
