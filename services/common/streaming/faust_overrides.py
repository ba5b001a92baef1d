"""All that is replaced in Faust (0.15.3, over aiokafka 0.14.0). What is only configured is in
`faust_app`.

Before each override stands what it changes, why, and the upstream issue that it answers. When Faust
or aiokafka is updated, read these again, and `Consumer._drain_messages` and `Stream._py_aiter` in
Faust, which `BatchConsumer` and `events_of` stand in for.

What Faust promises still holds: a rebalance stops the feed at once, and a record counts as read
only when its agent's queue has it.
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


def install(app: Any, consumer: type[Any]) -> None:
    """Replace parts of a Faust app, before it starts."""
    # Changes: the class of the app's consumer.
    # Why: Faust has a setting for its transport, by URL, and none for the consumer in it.
    # No upstream issue.
    app.transport.Consumer = consumer
    # Changes: Faust starts no producer.
    # Why: outputs go through `EventProducer`, which awaits every acknowledgement.
    # Upstream: https://github.com/robinhood/faust/pull/558 would make it an option of the app; it
    # is open.
    app.boot_strategy.enable_kafka_producer = False


class BatchConsumer(Consumer):
    """Hands the records of one fetch on to the agents in one task. To Faust, a consumer that never
    gets a record.
    """

    # Changes: the records are handed on here, and Faust's own loop over them gets none.
    # Why: for each record that loop makes four tasks, of which three only wait for a rebalance, a
    # stop or a crash, and ends them again: a third of what a record costs
    # (`benchmarks/streams.md`). Here these three are made once for a fetch.
    # The fetch itself is never cancelled: it would go on in the consumer's thread, and what it
    # brings after a rebalance would be nobody's.
    # Upstream: https://github.com/robinhood/faust/issues/563 (consuming is slow);
    # https://github.com/faust-streaming/faust/pull/235 (a fetch that a rebalance interrupts).
    async def getmany(self, timeout: float) -> AsyncIterator[Any]:  # noqa: ASYNC109 - its name in Faust
        """Hand on what one fetch brings; yields nothing."""
        consumer = cast(Any, self)
        records = [record async for record in cast(Any, super()).getmany(timeout)]
        if records:
            await consumer.wait_first(self._feed(records), consumer.suspend_flow.wait())
        return
        yield  # what makes it an iterator

    # Changes: a partition of which nothing was ever committed is read from its beginning again.
    # Why: aiokafka leaves it where a fetch got to that came to an end within the rebalance, and
    # whose records Faust dropped. These records would be skipped.
    # Upstream: https://github.com/aio-libs/aiokafka/issues/1003 (open); Faust's own part was
    # https://github.com/faust-streaming/faust/issues/216.
    async def seek_to_committed(self) -> Mapping[Any, int]:
        """Seek to the committed offsets, or to the beginning. Return what is committed."""
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


# Changes: stands in for the body of the loop in `Consumer._drain_messages`, with Faust's private
# fields: a record that was read before is left out, a gap between offsets is noted as read, and
# offsets are committed after `broker_commit_every` acknowledgements.
# Why: that loop gets no record any more (`BatchConsumer.getmany`).
# No upstream issue.
async def _hand_on(consumer: Any, place: Any, message: Any) -> None:
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


# Changes: an agent iterates over this instead of its stream, and acknowledges each record itself.
# Why: for each record Faust's iteration gives away a turn of the loop, calls sensors, and keeps a
# list of what is not acknowledged, to wait for at a rebalance; we do not wait
# (`stream_wait_empty=False`). What came before a rebalance is left out as there.
# Upstream: https://github.com/faust-streaming/faust/pull/751 (what a record costs; open);
# https://github.com/faust-streaming/faust/issues/221 (records from before a rebalance).
async def events_of(stream: Any) -> AsyncIterator[Any]:
    """Yield the records of an agent's stream as they are in its queue, until the app stops."""
    app, channel = stream.app, stream.channel
    is_active, heard = app.flow_control.is_active, app.monitor.stream_inbound_time
    count = 0
    while True:
        try:
            event = await channel.__anext__()
        except StopAsyncIteration:
            # The app stops. It must not leave a generator: Python makes a RuntimeError of it.
            return
        count += 1
        if count % _TURN == 0:
            await asyncio.sleep(0)
        message = event.message
        if is_active() and message.generation_id == app.consumer_generation_id:
            # Faust reports a partition from which nothing has come for long.
            heard[message.tp] = monotonic()
            yield event
