"""From Faust's consumer to its agents, with less work for each record.

For each record Faust's consumer makes four tasks, of which three only wait for a rebalance, a stop
or a crash, and ends them again: a third of what a record costs. Here the records of one fetch are
handed on in one task beside these three. What Faust promises holds: a rebalance stops the feed at
once, and a record counts as read only when its agent's queue has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from time import monotonic
from typing import Any, cast

from faust.transport.drivers.aiokafka import Consumer

_YIELD_EVERY = 100
"""Records after which others of the loop have their turn, as in Faust."""

_TURN = 20
"""Records that an agent takes while others wait: some milliseconds."""


class BatchConsumer(Consumer):
    """To Faust, a consumer that never gets a record."""

    async def getmany(self, timeout: float) -> AsyncIterator[Any]:  # noqa: ASYNC109 - its name in Faust
        """Hand on what one fetch brings; yields nothing.

        The fetch itself is never cancelled: it would go on in the consumer's thread, and what it
        brings after a rebalance would be nobody's.
        """
        consumer = cast(Any, self)
        records = [record async for record in cast(Any, super()).getmany(timeout)]
        if records:
            await consumer.wait_first(self._feed(records), consumer.suspend_flow.wait())
        return
        yield  # what makes it an iterator

    async def seek_to_committed(self) -> Mapping[Any, int]:
        """Also to the beginning of what was never committed.

        aiokafka leaves such a partition where a fetch got to that came to an end within the
        rebalance, and whose records Faust dropped.
        """
        consumer = cast(Any, super())
        committed: dict[Any, int] = await consumer.seek_to_committed()
        untouched = [place for place, offset in committed.items() if not offset]
        if untouched:
            await consumer.seek_wait(dict.fromkeys(untouched, 0))
        return committed

    async def _feed(self, records: list[Any]) -> None:
        consumer = cast(Any, self)
        for count, (place, message) in enumerate(records, 1):
            if count % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            await _hand_on(consumer, place, message)


async def events_of(stream: Any) -> AsyncIterator[Any]:
    """The records of an agent's stream as they are in its queue, to be acknowledged by whoever gets
    them.

    Without what Faust's own iteration does for each: a turn of the loop, sensors, a list of what is
    not acknowledged, which is there to wait for at a rebalance, and we do not. As there, what came
    before a rebalance is left out.
    """
    app, channel = stream.app, stream.channel
    is_active, heard = app.flow_control.is_active, app.monitor.stream_inbound_time
    count = 0
    while True:
        event = await channel.__anext__()
        count += 1
        if count % _TURN == 0:
            await asyncio.sleep(0)
        message = event.message
        if is_active() and message.generation_id == app.consumer_generation_id:
            # Faust's watch tells who has not heard of a partition for long.
            heard[message.tp] = monotonic()
            yield event


async def _hand_on(consumer: Any, place: Any, message: Any) -> None:
    """As Faust does with each."""
    read: int | None = consumer._read_offset[place]
    if read is not None and message.offset < read:
        return
    if read and message.offset - read > 1 and consumer.app.topics.acks_enabled_for(message.topic):
        await consumer._add_gap(place, read + 1, message.offset)
    if consumer._commit_every is not None and consumer._n_acked >= consumer._commit_every:
        consumer._n_acked = 0
        await consumer.commit()
    await consumer.callback(message)
    consumer._read_offset[place] = message.offset
