"""What waits for the log to be read: it passes neither too early nor later than it must."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.topics import AGENT_STATUS, LLM_CALLS, Topic
from services.common.streaming.barrier import Barrier, BarrierQueue


class MemoryLog:
    """Two topics of which only the ends matter, and how far each has been read."""

    def __init__(self) -> None:
        self.ends = {LLM_CALLS.name: 0, AGENT_STATUS.name: 0}
        self.read = dict(self.ends)
        self.questions = 0
        self.asked: asyncio.Event | None = None
        self.answer: asyncio.Event | None = None

    async def end_offset(self, topic: Topic, partition: int) -> int:
        assert partition == 3
        self.questions += 1
        end = self.ends[topic.name]
        if self.asked is not None and self.answer is not None:
            self.asked.set()
            await self.answer.wait()
        return end

    def position(self, topic: Topic) -> int:
        return self.read[topic.name]


class Unreachable(MemoryLog):
    async def end_offset(self, topic: Topic, partition: int) -> int:
        raise OSError("no broker")


class Item:
    """Something that waits."""

    def __init__(self, barrier: int | None = None) -> None:
        self.barrier = barrier


def both(log: MemoryLog) -> Barrier[str]:
    return Barrier(log, 3, (LLM_CALLS, AGENT_STATUS), log.position)


def queue(log: MemoryLog) -> BarrierQueue[int, Item]:
    return BarrierQueue(log, 3, LLM_CALLS, log.position)


def finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of what waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


async def test_a_payload_passes_once_when_both_topics_are_read() -> None:
    log = MemoryLog()
    log.ends = {LLM_CALLS.name: 2, AGENT_STATUS.name: 1}
    barrier = both(log)
    assert barrier.passed() is None
    await barrier.arm("due")
    log.ends[LLM_CALLS.name] = 100
    assert (barrier.is_armed, barrier.passed()) == (True, None)
    log.read[LLM_CALLS.name] = 2
    assert (barrier.is_armed, barrier.passed()) == (True, None)
    log.read[AGENT_STATUS.name] = 1
    assert barrier.passed() == "due"
    assert (barrier.is_armed, barrier.passed()) == (False, None)


async def test_a_payload_passes_at_once_where_all_is_read() -> None:
    barrier = both(MemoryLog())
    await barrier.arm("due")
    assert barrier.passed() == "due"


async def test_nothing_is_armed_while_kafka_cannot_be_asked() -> None:
    barrier = both(Unreachable())
    with pytest.raises(OSError, match="no broker"):
        await barrier.arm("due")
    assert (barrier.is_armed, barrier.passed()) == (False, None)


async def test_kafka_is_asked_once_for_all_that_were_added() -> None:
    log = MemoryLog()
    log.ends[LLM_CALLS.name] = 5
    waiting = queue(log)
    items = [Item() for _ in range(1_000)]
    for number, item in enumerate(items):
        waiting.add(number, item)
    assert await waiting.reached() == []
    assert await waiting.reached() == []
    assert log.questions == 1
    log.read[LLM_CALLS.name] = 5
    assert await waiting.reached() == items
    assert log.questions == 1


async def test_what_was_reached_stays_until_it_is_removed() -> None:
    log = MemoryLog()
    waiting, first, second = queue(log), Item(), Item()
    waiting.add(1, first)
    waiting.add(2, second)
    assert await waiting.reached() == [first, second]
    waiting.remove(1)
    assert await waiting.reached() == [second]
    waiting.remove(2)
    waiting.remove(2)
    assert await waiting.reached() == []


async def test_an_item_that_has_a_barrier_asks_for_none() -> None:
    log = MemoryLog()
    waiting, item = queue(log), Item(barrier=2)
    waiting.add(1, item)
    assert await waiting.reached() == []
    log.read[LLM_CALLS.name] = 2
    assert await waiting.reached() == [item]
    assert log.questions == 0


async def test_an_item_added_while_kafka_is_asked_waits_for_the_next_answer() -> None:
    log = MemoryLog()
    log.asked, log.answer = asyncio.Event(), asyncio.Event()
    waiting, early, late = queue(log), Item(), Item()
    waiting.add(1, early)
    reached = asyncio.create_task(waiting.reached())
    await log.asked.wait()
    log.ends[LLM_CALLS.name] = 1
    waiting.add(2, late)
    log.answer.set()
    assert await reached == [early]
    waiting.remove(1)
    assert await waiting.reached() == []
    assert late.barrier == 1


async def test_an_item_added_again_while_kafka_is_asked_waits_for_the_next_answer() -> None:
    log = MemoryLog()
    log.asked, log.answer = asyncio.Event(), asyncio.Event()
    waiting, item = queue(log), Item()
    waiting.add(1, item)
    reached = asyncio.create_task(waiting.reached())
    await log.asked.wait()
    log.ends[LLM_CALLS.name] = 1
    waiting.add(1, item)
    log.answer.set()
    assert await reached == []
    assert await waiting.reached() == []
    assert item.barrier == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "again", "remove", "write", "read", "look"]), st.integers(0, 4)
    )
)


@given(STEPS)
def test_an_item_passes_exactly_when_all_is_read_that_was_there_after_it_came(
    steps: list[tuple[str, int]],
) -> None:
    log = MemoryLog()
    waiting = queue(log)
    items: dict[int, Item] = {}
    written_at: dict[int, int] = {}
    """How far the log went when an item came."""
    for what, number in steps:
        if what == "add" or (what == "again" and number in items):
            item = items.setdefault(number, Item())
            if what == "again":
                item.barrier = None
            if item.barrier is None:
                written_at[number] = log.ends[LLM_CALLS.name]
            waiting.add(number, item)
        elif what == "remove":
            items.pop(number, None)
            waiting.remove(number)
        elif what == "write":
            log.ends[LLM_CALLS.name] += number
        elif what == "read":
            log.read[LLM_CALLS.name] = min(
                log.read[LLM_CALLS.name] + number, log.ends[LLM_CALLS.name]
            )
        else:
            before = log.questions
            unasked = [item for item in items.values() if item.barrier is None]
            reached = finish(waiting.reached())
            read = log.read[LLM_CALLS.name]
            assert log.questions - before == bool(unasked)
            assert reached == [
                item for item in items.values() if item.barrier is not None and item.barrier <= read
            ]
            assert all(written_at[number] <= read for number in items if items[number] in reached)
    log.read = dict(log.ends)
    assert finish(waiting.reached()) == list(items.values())
