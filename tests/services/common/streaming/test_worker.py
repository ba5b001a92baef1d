"""Acknowledgements go out strictly in order, and no record is passed over."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.avro.codec import Codec
from fulgurite.events import DeadLetter, Event
from fulgurite.ids import action_id
from fulgurite.topics import DEAD_LETTERS, LLM_CALLS, Topic
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.common.streaming.worker import (
    Ack,
    AckOrder,
    Partition,
    Rejected,
    StreamSettings,
    Worker,
)
from tests.synthetic import make_call


@given(st.permutations(range(8)))
def test_an_input_is_acknowledged_once_everything_before_it_is_done(order: list[int]) -> None:
    acknowledged: list[int] = []
    acks = AckOrder()
    handles = [acks.add(lambda offset=offset: acknowledged.append(offset)) for offset in range(8)]
    for count, offset in enumerate(order, 1):
        handles[offset]()
        done = set(order[:count])
        assert acknowledged == [known for known in range(8) if set(range(known + 1)) <= done]
    assert len(acks) == 0


def test_acking_twice_does_no_harm() -> None:
    acknowledged: list[int] = []
    acks = AckOrder()
    ack = acks.add(lambda: acknowledged.append(1))
    ack()
    ack()
    assert acknowledged == [1]


class Taken:
    """A processor that only notes what it gets."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def consume(self, topic: Topic, event: Event, ack: Ack) -> None:
        self.calls.append(event.event_id)

    async def work(self) -> None:
        """Nothing to do."""


async def taken(offset: int, *, expected: int, in_log: int | None) -> list[str]:
    """What a processor gets of a record, where `in_log` is the first that the log has from
    `expected` on.
    """
    worker = Worker(
        "test", (LLM_CALLS,), KafkaSettings(bootstrap_servers="127.0.0.1:1"), StreamSettings()
    )
    try:
        processor, inside = Taken(), cast(Any, worker)

        async def first_offset(*place: Any) -> int | None:
            assert place == (LLM_CALLS, 0, expected)
            return in_log

        inside.log.first_offset = first_offset
        inside.partitions[0] = Partition({LLM_CALLS.name: expected}, processor)
        inside._ready.set()
        message = SimpleNamespace(
            partition=0, offset=offset, timestamp=1.0, value=Codec().encode(make_call())
        )
        await inside._take(LLM_CALLS, SimpleNamespace(message=message, ack=lambda: None))
        assert worker.position(LLM_CALLS, 0) == max(expected, offset + 1)
        return processor.calls
    finally:
        worker.producer.close()
        worker.log.close()


async def test_records_come_one_after_the_other() -> None:
    assert len(await taken(7, expected=7, in_log=None)) == 1
    assert await taken(6, expected=7, in_log=None) == []


async def test_what_the_log_does_not_have_is_not_missed() -> None:
    assert len(await taken(9, expected=7, in_log=9)) == 1


@pytest.mark.parametrize("in_log", [7, 8, None])
async def test_a_record_that_was_lost_on_its_way_stops_the_worker(in_log: int | None) -> None:
    with pytest.raises(
        RuntimeError,
        match=r"Gap in fulgurite\.llm\.calls\[0\]: expected offset 7, got 9\. .* 7 to 8 are read",
    ):
        await taken(9, expected=7, in_log=in_log)


class Failing(Taken):
    """A processor that raises, the first times."""

    def __init__(self, times: int, error: Exception) -> None:
        super().__init__()
        self.times = times
        self.error = error

    async def consume(self, topic: Topic, event: Event, ack: Ack) -> None:
        await super().consume(topic, event, ack)
        if len(self.calls) <= self.times:
            raise self.error


class Unprintable(Exception):
    def __str__(self) -> str:
        raise KeyError("no text")


async def handled(value: bytes, processor: Taken) -> tuple[list[DeadLetter], list[str]]:
    """The dead letters of one record, and whether it was acknowledged."""
    worker = Worker(
        "test", (LLM_CALLS,), KafkaSettings(bootstrap_servers="127.0.0.1:1"), StreamSettings()
    )
    dead_letters: list[DeadLetter] = []
    acknowledged: list[str] = []
    try:
        inside = cast(Any, worker)

        async def publish(topic: Topic, events: Any) -> None:
            assert topic is DEAD_LETTERS
            dead_letters.extend(
                cast(DeadLetter, CODEC.decode(CODEC.encode(letter))) for _, letter in events
            )

        inside.log.publish = publish
        inside.partitions[0] = Partition({LLM_CALLS.name: 7}, processor)
        inside._ready.set()
        message = SimpleNamespace(
            topic="x.llm.calls", partition=0, offset=7, timestamp=1.0, key=b"group", value=value
        )
        await inside._take(
            LLM_CALLS, SimpleNamespace(message=message, ack=lambda: acknowledged.append("yes"))
        )
        assert worker.position(LLM_CALLS, 0) == 8
        assert message.value is None, "what waits is not held as bytes too"
        return dead_letters, acknowledged
    finally:
        worker.producer.close()
        worker.log.close()


CALL = make_call()
CODEC = Codec()


@pytest.mark.parametrize(
    "error", [ValueError("no"), RecursionError(), MemoryError(), AssertionError(), Unprintable()]
)
async def test_an_input_whose_handling_raises_twice_is_a_dead_letter_with_its_actions(
    error: Exception,
) -> None:
    dead_letters, acknowledged = await handled(Codec().encode(CALL), processor := Failing(2, error))
    assert len(processor.calls) == 2
    assert acknowledged == ["yes"]
    [letter] = dead_letters
    assert (letter.error_type, letter.offset, letter.stage, letter.key) == (
        type(error).__name__,
        7,
        "test",
        b"group",
    )
    assert letter.actions == (action_id(CALL.call_id, 0),)
    assert Codec().decode(letter.value or b"") == CALL


async def test_one_that_succeeds_the_second_time_is_taken() -> None:
    dead_letters, acknowledged = await handled(
        Codec().encode(CALL), processor := Failing(1, ValueError("once"))
    )
    assert (len(processor.calls), dead_letters, acknowledged) == (2, [], [])


async def test_what_cannot_be_used_is_not_tried_again() -> None:
    dead_letters, _ = await handled(
        Codec().encode(CALL), processor := Failing(9, Rejected("no place", ("a#0",)))
    )
    assert (len(processor.calls), dead_letters[0].error_type, dead_letters[0].actions) == (
        1,
        "Rejected",
        ("a#0",),
    )
    dead_letters, acknowledged = await handled(b"", Taken())
    assert (dead_letters[0].error_type, dead_letters[0].value, acknowledged) == (
        "MalformedFrame",
        b"",
        ["yes"],
    )


@pytest.mark.parametrize(
    "error",
    [
        LogUnavailable("away"),
        KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT)),
        OSError(28, "full"),
    ],
)
async def test_a_failure_of_the_log_or_the_disk_is_no_fault_of_the_input(error: Exception) -> None:
    with pytest.raises(type(error)):
        await handled(Codec().encode(CALL), Failing(9, error))


async def test_a_record_that_no_letter_can_hold_goes_without_its_bytes() -> None:
    [letter], acknowledged = await handled(random.Random(0).randbytes(8_388_300), Taken())
    assert (letter.error_type, letter.value, acknowledged) == ("MalformedFrame", None, ["yes"])
    assert "its 8,388,300 bytes are left out" in letter.error
    large = msgspec.structs.replace(CALL, request="x" * 8_300_000)
    [letter], _ = await handled(Codec().encode(large), Failing(2, ValueError("no")))
    assert (letter.value, letter.actions) == (None, (action_id(CALL.call_id, 0),))


@pytest.mark.parametrize("told_to_stop", [True, False])
async def test_a_stream_that_ends_before_the_worker_is_to_stop_is_a_failure(
    told_to_stop: bool,
) -> None:
    async def stop() -> Any:
        raise StopAsyncIteration

    worker = Worker(
        "test", (LLM_CALLS,), KafkaSettings(bootstrap_servers="127.0.0.1:1"), StreamSettings()
    )
    inside = cast(Any, worker)
    app = SimpleNamespace(
        flow_control=SimpleNamespace(is_active=bool),
        monitor=SimpleNamespace(stream_inbound_time={}),
    )
    if told_to_stop:
        inside._stop.set()
    try:
        channel = SimpleNamespace(__anext__=stop)
        await worker.consume(LLM_CALLS, SimpleNamespace(app=app, channel=channel))
        assert inside._stop.is_set()
        assert (inside._failure is None) == told_to_stop
    finally:
        worker.producer.close()
        worker.log.close()
