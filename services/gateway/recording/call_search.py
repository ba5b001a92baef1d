"""Find one call in `llm.calls` by its id: at the place that is remembered of it, else by its key,
from the newest records back.

An id names its group, which is the records' key and so determines the partition. Most groups' ids
hold the time of the first call, and no record before it is read. Blocking.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from fulgurite.avro.codec import Codec
from fulgurite.errors import BadClaim, BrokenDelta
from fulgurite.events import LlmCall
from fulgurite.ids import CompletionRef, minted_at
from fulgurite.topics import LLM_CALLS, partition_of
from services.common.blobs.blob_store import redeemed
from services.common.kafka.consumer import make_consumer, read_message, read_until, watermarks
from services.common.kafka.delivery import Delivery
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.logged_calls import CallReader
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs

log = logs.get(__name__)

PATIENCE_S = 10.0
"""Seconds that records are read in search of one call."""
_TIMEOUT_S = 5.0
"""Seconds without an answer after which a broker counts as away."""
_SKEW_MS = 60_000
"""How much the clocks of gateways may differ."""
_FIRST_STEP, _LONGEST_STEP = 500, 50_000
"""Records in a step back, first and at most. Most calls that are searched for are recent, so steps
begin small.
"""


class SearchTooLong(Exception):
    """The call was not found within the time limit."""


class CallSearch:
    """Searches the log. Each search has consumers of its own, so that several threads may search at
    once.
    """

    def __init__(
        self, settings: KafkaSettings, codec: Codec, patience_s: float = PATIENCE_S
    ) -> None:
        self._settings = settings
        self._codec = codec
        self._patience_s = patience_s

    def find(self, ref: CompletionRef, place: Delivery | None) -> LlmCall | None:
        """The complete call with all its text; None if the log does not have it (any more). Raises
        LogUnavailable, SearchTooLong.
        """
        try:
            with closing(make_consumer(self._settings)) as consumer:
                found = self._found(consumer, ref, place)
            call = found.get(ref.completion_id)
            # A delta is expanded from its parent: one of those found, or one that is read for it.
            return (
                None
                if call is None
                else redeemed(
                    CallReader(self._settings, self._codec).complete_call(call, found.get)
                )
            )
        except KafkaException as error:
            raise LogUnavailable(f"{self._settings.topic(LLM_CALLS)}: {error}") from error
        except (BrokenDelta, BadClaim) as error:
            log.warning(
                "a recorded call cannot be read", call_id=ref.completion_id, error=str(error)
            )
            return None

    def _found(
        self, consumer: Consumer, ref: CompletionRef, place: Delivery | None
    ) -> dict[str, LlmCall]:
        """Calls of the group by id, as the log has them, the one that is sought among them if it is
        there.
        """
        key = ref.rollout.group_id.encode()
        partition = partition_of(key, LLM_CALLS.partitions) if place is None else place.partition
        where = TopicPartition(self._settings.topic(LLM_CALLS), partition)
        low, high = watermarks(consumer, where, _TIMEOUT_S)
        if place is not None:
            return self._read(
                consumer, where, max(low, place.offset), min(high, place.offset + 1), key
            )
        minted = minted_at(ref.rollout.group_id)
        first = (
            low
            if minted is None
            else max(low, self._offset_at(consumer, where, minted - _SKEW_MS, high))
        )
        found: dict[str, LlmCall] = {}
        step, end, deadline = _FIRST_STEP, high, time.monotonic() + self._patience_s
        while end > first and ref.completion_id not in found:
            if time.monotonic() > deadline:
                raise SearchTooLong
            start = max(first, end - step)
            found |= self._read(consumer, where, start, end, key)
            step, end = min(4 * step, _LONGEST_STEP), start
        return found

    def _offset_at(self, consumer: Consumer, where: TopicPartition, time_ms: int, high: int) -> int:
        """The first record of that time or later."""
        [found] = consumer.offsets_for_times(
            [TopicPartition(where.topic, where.partition, time_ms)], timeout=_TIMEOUT_S
        )
        return found.offset if found.offset >= 0 else high

    def _read(
        self, consumer: Consumer, where: TopicPartition, start: int, end: int, key: bytes
    ) -> dict[str, LlmCall]:
        found: dict[str, LlmCall] = {}
        for message in self._messages(consumer, where, start, end):
            event = read_message(message, self._codec).event if message.key() == key else None
            if isinstance(event, LlmCall):
                found[event.call_id] = event
        return found

    def _messages(
        self, consumer: Consumer, where: TopicPartition, start: int, end: int
    ) -> Iterator[Message]:
        if start < end:
            consumer.assign([TopicPartition(where.topic, where.partition, start)])
            yield from read_until(consumer, {(where.topic, where.partition): end})
