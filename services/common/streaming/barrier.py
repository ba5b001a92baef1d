"""Waits until a partition has been read far enough.

Whoever concludes that something is not in the log (a call, an end, a reward) first asks Kafka where
the log ends now, and concludes it only when all is read up to there: so wall time never outruns the
log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Generic, NamedTuple, Protocol, TypeVar

from fulgurite.topics import Topic

Payload = TypeVar("Payload")


class EndOffsets(Protocol):
    """What is needed of `services.common.streaming.worker.Log`."""

    async def end_offset(self, topic: Topic, partition: int) -> int:
        """One past the last record there is now."""
        ...


Position = Callable[[Topic], int]
"""Returns one past the last record of a topic that was taken in."""


class _Armed(NamedTuple, Generic[Payload]):
    payload: Payload
    ends: dict[Topic, int]


class Barrier(Generic[Payload]):
    """Holds one payload until some topics of a partition have been read up to the ends that they
    had when it was armed.
    """

    def __init__(
        self, log: EndOffsets, partition: int, topics: Collection[Topic], position: Position
    ) -> None:
        self._log = log
        self._partition = partition
        self._topics = topics
        self._position = position
        self._armed: _Armed[Payload] | None = None

    @property
    def is_armed(self) -> bool:
        """Whether a payload waits."""
        return self._armed is not None

    async def arm(self, payload: Payload) -> None:
        """Ask Kafka for the ends, then hold the payload. Raises what Kafka raises."""
        ends = {topic: await self._log.end_offset(topic, self._partition) for topic in self._topics}
        self._armed = _Armed(payload, ends)

    def passed(self) -> Payload | None:
        """Return the payload once all is read up to the ends, and let go of it; otherwise None."""
        armed = self._armed
        if armed is None or any(self._position(topic) < end for topic, end in armed.ends.items()):
            return None
        self._armed = None
        return armed.payload


class HasBarrier(Protocol):
    """What can wait in a `BarrierQueue`."""

    barrier: int | None
    """The topic must be read up to here; None: not known yet."""


Key = TypeVar("Key")
Item = TypeVar("Item", bound=HasBarrier)


class BarrierQueue(Generic[Key, Item]):
    """Items that each wait until one topic of a partition has been read up to the item's barrier.

    An item without a barrier gets one: the topic's end, which Kafka is asked for once for all items
    that were added since the last time. While no barrier can have been reached, nobody looks
    through the items, of which there may be thousands.
    """

    def __init__(self, log: EndOffsets, partition: int, topic: Topic, position: Position) -> None:
        self._log = log
        self._partition = partition
        self._topic = topic
        self._position = position
        self._items: dict[Key, Item] = {}
        self._unasked: dict[Key, Item] = {}
        """Of those, the ones without a barrier."""
        self._nearest: float = math.inf
        """No item's barrier is below it."""

    def add(self, key: Key, item: Item) -> None:
        """Let an item wait. Add it again when its barrier was set to None."""
        self._items[key] = item
        if item.barrier is None:
            self._unasked[key] = item
        else:
            self._nearest = min(self._nearest, item.barrier)

    def remove(self, key: Key) -> None:
        """Let an item, if it is there, wait no longer."""
        self._items.pop(key, None)
        self._unasked.pop(key, None)

    async def reached(self) -> list[Item]:
        """Return the items whose barrier is reached. They stay until they are removed.

        Raises what Kafka raises.
        """
        if self._unasked:
            await self._ask()
        read = self._position(self._topic)
        if self._nearest > read:
            return []
        barriers = [
            (item.barrier, item) for item in self._items.values() if item.barrier is not None
        ]
        self._nearest = min((barrier for barrier, _ in barriers), default=math.inf)
        return [item for barrier, item in barriers if barrier <= read]

    async def _ask(self) -> None:
        unasked, self._unasked = self._unasked, {}
        end = await self._log.end_offset(self._topic, self._partition)
        for key, item in unasked.items():
            # One added again meanwhile waits for an end that is asked for after that.
            if key not in self._unasked:
                item.barrier = end
        self._nearest = min(self._nearest, end)
