"""What Faust's consumer hands on of a fetch, and when it stops."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from faust.transport.drivers.aiokafka import Consumer
from mode import Service

from services.common.streaming.faust_overrides import BatchConsumer, events_of

PLACE = ("llm.calls", 0)


def _in_order(records: list[Any]) -> Iterator[Any]:
    return ((PLACE, record) for record in records)


def _untold(place: Any, offset: Any) -> None:
    """Nobody looks at how far the log goes."""


class Fed(BatchConsumer):
    """Ours, over a fetch of these offsets, of which it has read those below `read`; its agent's
    queue has `room`.
    """

    abstract = False

    def __init__(
        self,
        offsets: list[int],
        *,
        read: int | None = None,
        room: int = 1000,
        commit_every: int | None = None,
    ) -> None:
        Service.__init__(self)  # pyright: ignore[reportUnknownMemberType]
        state: Any = self
        state._read_offset = defaultdict(lambda: read)
        state._commit_every = commit_every
        state._n_acked = 0
        state.suspend_flow = asyncio.Event()
        state.flow_active = True
        state.scheduler = SimpleNamespace(iterate=_in_order)
        state.app = SimpleNamespace(
            consumer_generation_id=1,
            monitor=SimpleNamespace(track_tp_end_offset=_untold),
            topics=SimpleNamespace(acks_enabled_for=bool),
        )
        state.callback = self._put
        self.records = [SimpleNamespace(offset=offset, topic=PLACE[0]) for offset in offsets]
        self.queue: asyncio.Queue[int] = asyncio.Queue(room)
        self.full = asyncio.Event()
        self.fetching: asyncio.Event | None = None
        self.gaps: list[tuple[int, int]] = []
        self.commits: list[int] = []

    async def _wait_next_records(self, timeout: float) -> Any:  # noqa: ASYNC109 - its name in Faust
        if self.fetching is not None:
            await self.fetching.wait()
        return self.records, None

    def _to_message(self, tp: Any, record: Any) -> Any:
        return record

    def highwater(self, tp: Any) -> int:
        return 1000

    async def _put(self, message: Any) -> None:
        if self.queue.full():
            self.full.set()
        await self.queue.put(message.offset)
        state: Any = self
        state._n_acked += 1

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        self.gaps.append((offset_from, offset_to))

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        self.commits.append(self.queue.qsize())
        return True

    @property
    def read(self) -> int | None:
        state: Any = self
        return state._read_offset[PLACE]

    async def fetch(self) -> list[int]:
        """What the agent's queue has after one fetch."""
        assert [record async for record in self.getmany(1.0)] == []
        return [self.queue.get_nowait() for _ in range(self.queue.qsize())]


async def test_all_records_of_a_fetch_are_handed_on_in_order() -> None:
    consumer = Fed(list(range(250)))
    assert await consumer.fetch() == list(range(250))
    assert consumer.read == 249


async def test_what_was_read_before_is_left_out_and_a_gap_is_told() -> None:
    consumer = Fed([3, 4, 5, 6, 9, 10], read=5)
    assert await consumer.fetch() == [5, 6, 9, 10]
    assert consumer.gaps == [(7, 9)]


async def test_offsets_are_committed_after_so_many_acknowledgements() -> None:
    consumer = Fed(list(range(5)), commit_every=2)
    assert await consumer.fetch() == list(range(5))
    assert consumer.commits == [2, 4]


async def test_a_rebalance_stops_a_feed_that_waits_for_its_agent() -> None:
    consumer = Fed(list(range(5)), room=2)
    feed = asyncio.create_task(consumer.fetch())
    await consumer.full.wait()
    consumer.suspend_flow.set()
    assert await feed == [0, 1]
    assert consumer.read == 1


async def test_a_rebalance_does_not_cancel_a_fetch() -> None:
    consumer = Fed([0, 1])
    consumer.fetching = asyncio.Event()
    state: Any = consumer
    state.suspend_flow.set()
    feed = asyncio.create_task(consumer.fetch())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not feed.done(), "its records would be lost"
    state.suspend_flow.clear()
    consumer.fetching.set()
    assert await feed == [0, 1]


async def test_a_partition_without_a_commit_is_read_from_its_beginning_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    committed = {("calls", 0): None, ("calls", 1): 0, ("calls", 2): 7}
    sought: dict[Any, int] = {}

    async def seek_to_committed(_: Any) -> dict[Any, int | None]:
        return committed

    async def seek_wait(_: Any, partitions: dict[Any, int]) -> None:
        sought.update(partitions)

    monkeypatch.setattr(Consumer, "seek_to_committed", seek_to_committed)
    monkeypatch.setattr(Consumer, "seek_wait", seek_wait)
    assert await Fed([]).seek_to_committed() == committed
    assert sought == {("calls", 0): 0, ("calls", 1): 0}


async def test_a_failure_of_the_agent_reaches_faust() -> None:
    consumer = Fed([0])
    consumer.callback = failing
    with pytest.raises(RuntimeError, match="no room"):
        await consumer.fetch()


class Stream:
    """An agent's, of Faust: a queue of records, each with the generation of the group that it was
    read in.
    """

    def __init__(self, *generations: int) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.channel = SimpleNamespace(__anext__=self.queue.get)
        self.active = True
        self.app = SimpleNamespace(
            consumer_generation_id=2,
            flow_control=SimpleNamespace(is_active=lambda: self.active),
            monitor=SimpleNamespace(stream_inbound_time={}),
        )
        for offset, generation in enumerate(generations):
            self.queue.put_nowait(
                SimpleNamespace(
                    message=SimpleNamespace(offset=offset, tp=PLACE, generation_id=generation)
                )
            )


async def taken(stream: Stream, into: list[int]) -> None:
    async for event in events_of(stream):
        into.append(event.message.offset)  # noqa: PERF401 - it never ends


async def test_an_agent_gets_what_was_read_since_the_last_rebalance() -> None:
    stream, got = Stream(1, 2, 1, 2), list[int]()
    agent = asyncio.create_task(taken(stream, got))
    await asyncio.sleep(0)
    assert got == [1, 3]
    assert PLACE in stream.app.monitor.stream_inbound_time
    stream.active = False
    stream.queue.put_nowait(
        SimpleNamespace(message=SimpleNamespace(offset=4, tp=PLACE, generation_id=2))
    )
    await asyncio.sleep(0)
    assert got == [1, 3], "a rebalance is under way: it will be read again"
    agent.cancel()


async def test_an_agents_records_end_when_its_app_stops() -> None:
    async def stop() -> Any:
        raise StopAsyncIteration

    stream, got = Stream(), list[int]()
    stream.channel = SimpleNamespace(__anext__=stop)
    await taken(stream, got)
    assert got == []


async def test_an_agent_with_much_to_do_lets_others_have_their_turn() -> None:
    stream, got = Stream(*[2] * 100), list[int]()
    agent = asyncio.create_task(taken(stream, got))
    await asyncio.sleep(0)
    assert 0 < len(got) < 100
    for _ in range(100):
        await asyncio.sleep(0)
    assert got == list(range(100))
    agent.cancel()


async def failing(_: Any) -> None:
    raise RuntimeError("no room")
