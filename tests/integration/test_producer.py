"""The one producer: awaited in an event loop, in a thread, or in neither; what was queued arrives
whoever gave up waiting for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.events import AgentStatus
from fulgurite.topics import AGENT_STATUS
from services.common.kafka.consumer import read_all
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.local_stack.kafka_local import LocalKafka
from tests.synthetic import make_declared

pytestmark = pytest.mark.engine


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str) -> KafkaSettings:
    made = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, topic_prefix=topic_prefix)
    create_topics(made)
    return made


@pytest.fixture(params=[0, 0.5], ids=["one", "bursts apart"])
def producer(settings: KafkaSettings, request: pytest.FixtureRequest) -> Iterator[EventProducer]:
    made = EventProducer(settings, Codec(), "test", burst_linger_ms=request.param)
    yield made
    made.close()


def event(number: int) -> AgentStatus:
    return make_declared(number)


def read(settings: KafkaSettings) -> set[str]:
    return {
        record.event.event_id
        for record in read_all(settings, AGENT_STATUS, Codec())
        if record.event is not None
    }


async def test_many_at_once_are_each_acknowledged(
    settings: KafkaSettings, producer: EventProducer
) -> None:
    events = [event(number) for number in range(500)]
    deliveries = await asyncio.gather(
        *(producer.publish(AGENT_STATUS, one.group_id, one, timeout_s=30) for one in events)
    )
    assert len({(delivery.partition, delivery.offset) for delivery in deliveries}) == 500
    assert await asyncio.to_thread(read, settings) == {one.event_id for one in events}


async def test_who_gives_up_takes_nothing_out_of_the_queue(
    settings: KafkaSettings, producer: EventProducer
) -> None:
    waiting = asyncio.create_task(producer.publish(AGENT_STATUS, event(1).group_id, event(1)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await producer.publish(AGENT_STATUS, event(2).group_id, event(2), timeout_s=30)
    await asyncio.to_thread(producer.close)
    assert await asyncio.to_thread(read, settings) == {event(1).event_id, event(2).event_id}


async def until_pending(producer: EventProducer, count: int) -> None:
    """Errors of the connection count until they were looked at."""
    async with asyncio.timeout(60):
        while producer.pending() != count:  # noqa: ASYNC110 - another thread looks at them
            await asyncio.sleep(0.001)


async def test_a_few_behind_many(settings: KafkaSettings, producer: EventProducer) -> None:
    """While a burst is under way, few are left that wait, and more come: each hears of its own."""
    many = [asyncio.create_task(publish(producer, event(number))) for number in range(50)]
    await asyncio.sleep(0.001)
    for one in many[3:]:
        one.cancel()
    few = [asyncio.create_task(publish(producer, event(number))) for number in range(50, 53)]
    await asyncio.gather(*many[:3], *few)
    await asyncio.to_thread(producer.close)
    assert producer.pending() == 0
    assert await asyncio.to_thread(read, settings) == {
        event(number).event_id for number in range(53)
    }


@pytest.mark.parametrize("linger", [0, 0.5])
async def test_many_that_nobody_takes_are_counted(linger: float) -> None:
    producer = EventProducer(
        KafkaSettings(bootstrap_servers="127.0.0.1:1"), Codec(), "test", burst_linger_ms=linger
    )
    waiting = [asyncio.create_task(publish(producer, event(number))) for number in range(20)]
    await until_pending(producer, 20)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert await asyncio.to_thread(producer.close, 0.1) == 20


async def test_what_gathers_behind_what_is_under_way_is_counted_and_not_lost() -> None:
    producer = EventProducer(KafkaSettings(bootstrap_servers="127.0.0.1:1"), Codec(), "test")
    waiting: list[asyncio.Task[object]] = []
    for number in range(5):
        waiting.append(
            asyncio.create_task(
                producer.publish(AGENT_STATUS, event(number).group_id, event(number))
            )
        )
        await until_pending(producer, number + 1)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert await asyncio.to_thread(producer.close, 0.1) == 5


async def test_a_few_need_no_look_of_the_loop(
    producer: EventProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await producer.publish(AGENT_STATUS, event(0).group_id, event(0), timeout_s=30)
    await asyncio.sleep(0.2)
    monkeypatch.setattr("services.common.kafka.burst_scheduler._TICK_S", 3600)
    waiting: list[asyncio.Task[object]] = []
    for number in range(1, 7):
        waiting.append(
            asyncio.create_task(
                producer.publish(AGENT_STATUS, event(number).group_id, event(number), timeout_s=30)
            )
        )
        # Each a burst of its own: the later ones are held until the thread hears of the first.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)


async def test_a_thread_beside_the_loop_is_served(producer: EventProducer) -> None:
    async def keep_busy() -> None:
        for number in range(100):
            await producer.publish(
                AGENT_STATUS, event(number).group_id, event(number), timeout_s=30
            )

    busy = asyncio.create_task(keep_busy())
    for number in range(100, 110):
        await asyncio.to_thread(
            producer.publish_sync, AGENT_STATUS, event(number).group_id, event(number)
        )
    await busy


def test_one_loop_after_another_and_none(settings: KafkaSettings, producer: EventProducer) -> None:
    for number in (1, 2):
        asyncio.run(publish(producer, event(number)))
    # A loop that is gone while its event is under way must not take the others with it.
    asyncio.run(abandon(producer, event(3)))
    producer.publish_sync(AGENT_STATUS, event(4).group_id, event(4))
    assert read(settings) == {event(number).event_id for number in (1, 2, 3, 4)}


async def publish(producer: EventProducer, one: AgentStatus) -> None:
    await producer.publish(AGENT_STATUS, one.group_id, one, timeout_s=30)


async def abandon(producer: EventProducer, one: AgentStatus) -> None:
    waiting = asyncio.create_task(publish(producer, one))
    await asyncio.sleep(0)
    waiting.cancel()


async def test_no_acknowledgement_is_told_in_time() -> None:
    producer = EventProducer(
        KafkaSettings(bootstrap_servers="127.0.0.1:1"), Codec(), "test", delivery_timeout_s=2
    )
    begun = time.monotonic()
    with pytest.raises(LogUnavailable, match=r"no acknowledgement within 0\.3 s"):
        await producer.publish(AGENT_STATUS, event(1).group_id, event(1), timeout_s=0.3)
    assert time.monotonic() - begun < 2
    with pytest.raises(LogUnavailable):
        await producer.publish(AGENT_STATUS, event(1).group_id, event(1))
    await asyncio.to_thread(producer.close, 1)
