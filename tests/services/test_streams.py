"""Acknowledgements go out strictly in order, and no record is passed over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.codec import Codec
from fulgurite.events import Event
from fulgurite.topics import LLM_CALLS, Topic
from services.kafka import KafkaSettings
from services.streams import AckOrder, Partition, Settle, StreamSettings, Worker
from tests.synthetic import make_call


@given(st.permutations(range(8)))
def test_an_input_is_acknowledged_once_everything_before_it_is_settled(order: list[int]) -> None:
    acknowledged: list[int] = []
    acks = AckOrder()
    settles = [acks.add(lambda offset=offset: acknowledged.append(offset)) for offset in range(8)]
    for count, offset in enumerate(order, 1):
        settles[offset]()
        done = set(order[:count])
        assert acknowledged == [known for known in range(8) if set(range(known + 1)) <= done]
    assert len(acks) == 0


def test_settling_twice_does_no_harm() -> None:
    acknowledged: list[int] = []
    acks = AckOrder()
    settle = acks.add(lambda: acknowledged.append(1))
    settle()
    settle()
    assert acknowledged == [1]


class Taken:
    """A processor that only notes what it gets."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def take(self, topic: Topic, event: Event, settle: Settle) -> None:
        self.calls.append(event.event_id)

    async def work(self) -> None:
        """Nothing to do."""


async def taken(offset: int, *, expected: int, in_log: int | None) -> list[str]:
    """What a processor gets of a record, where `in_log` is the first that the log has from `expected` on."""
    worker = Worker("test", (LLM_CALLS,), KafkaSettings(bootstrap_servers="127.0.0.1:1"), StreamSettings())
    try:
        processor, inside = Taken(), cast(Any, worker)

        async def first_offset(*place: Any) -> int | None:
            assert place == (LLM_CALLS, 0, expected)
            return in_log

        inside.log.first_offset = first_offset
        inside.partitions[0] = Partition({LLM_CALLS.name: expected}, processor)
        inside._ready.set()
        message = SimpleNamespace(partition=0, offset=offset, value=Codec().encode(make_call()))
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
    with pytest.raises(RuntimeError, match=r"llm.calls\[0\]: after 6 came 9; the next start reads what is between again"):
        await taken(9, expected=7, in_log=in_log)
