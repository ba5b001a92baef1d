"""Topics that a gateway reads before it serves, and then follows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fulgurite.avro.codec import Codec
from fulgurite.events import Event
from fulgurite.topics import Topic
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_tail import TopicTail
from services.common.runtime import logs

log = logs.get(__name__)

_READ_S = 5.0
"""Seconds that a start waits for the topics: without Kafka a gateway may serve, too."""


class FollowedTopics:
    """Applies every event of some topics, as `TopicTail` does."""

    def __init__(
        self,
        kafka: KafkaSettings,
        codec: Codec,
        topics: Sequence[Topic],
        apply: Callable[[Event | None], None],
        unread: str,
    ) -> None:
        """`unread` says, for the log, how calls are served until the topics are read."""
        self._tail = TopicTail(kafka, codec, topics, apply)
        self._unread = unread
        self.close = self._tail.close

    @property
    def caught_up(self) -> bool:
        """Whether everything that the topics had at the start is applied."""
        return self._tail.caught_up.is_set()

    async def start(self) -> None:
        """Begin to follow the topics; return once they are read, or after some seconds without
        them.
        """
        self._tail.start()
        try:
            async with asyncio.timeout(_READ_S):
                await self._tail.caught_up.wait()
        except TimeoutError:
            log.warning(self._unread, waited_s=_READ_S)
