"""Reads calls from `llm.calls` and expands deltas. Code that needs prompts or requests uses this.

A delta is restored from its parent, which is remembered or read again from its place in the log.
Claim checks are kept (`services.common.blobs.blob_store` redeems them), because a call's text may
be larger than any message.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition

from fulgurite.avro.codec import Codec
from fulgurite.calls.deltas import CHAIN, restore
from fulgurite.errors import BrokenDelta, CodecError
from fulgurite.events import LlmCall
from fulgurite.topics import LLM_CALLS
from services.common.kafka.consumer import Record, make_consumer, read_all, watermarks
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings

_TIMEOUT_S = 30.0
_ONE_BY_ONE = {"queued.min.messages": 1, "fetch.message.max.bytes": 65_536, "fetch.wait.max.ms": 10}
"""Read nothing ahead. A larger record still comes completely."""

_MEMORY_BYTES = 256 * 1024**2


class CallReader:
    """Expands calls. Blocks to read a parent that is not remembered. Not thread-safe."""

    def __init__(self, settings: KafkaSettings, codec: Codec) -> None:
        self._settings = settings
        self._codec = codec

    def complete_call(self, call: LlmCall, remembered: Callable[[str], LlmCall | None]) -> LlmCall:
        """Return a call with all that its delta leaves to its parents. `remembered` returns a
        complete call by its id, if it is at hand. Raises BrokenDelta, LogUnavailable.
        """
        chain = [call]
        with ExitStack() as stack:
            consumer: Consumer | None = None
            while (ref := chain[-1].parent) is not None:
                if len(chain) > CHAIN:
                    raise BrokenDelta(
                        f"call {call.call_id}: its chain of parents is longer than {CHAIN}"
                    )
                parent = remembered(ref.call_id)
                if parent is None:
                    if consumer is None:
                        consumer = make_consumer(self._settings, overrides=_ONE_BY_ONE)
                        stack.callback(consumer.close)
                    parent = self._read(consumer, ref.partition, ref.offset, chain[-1])
                chain.append(parent)
        complete = chain.pop()
        while chain:
            complete = restore(chain.pop(), complete)
        return complete

    def _read(self, consumer: Consumer, partition: int, offset: int, child: LlmCall) -> LlmCall:
        """Read the call at a place. Raises BrokenDelta if it is gone or not a call."""
        where = f"{self._settings.topic(LLM_CALLS)}[{partition}]@{offset}"
        if not (0 <= partition < LLM_CALLS.partitions and offset >= 0):
            raise BrokenDelta(
                f"call {child.call_id}: its parent at {where} is not in a partition of the topic"
            )
        try:
            place = TopicPartition(self._settings.topic(LLM_CALLS), partition, offset)
            low, high = watermarks(consumer, place, _TIMEOUT_S)
            if not low <= offset < high:
                raise BrokenDelta(
                    f"call {child.call_id}: its parent at {where} is not in the log (any more)"
                )
            consumer.assign([place])
            message = consumer.poll(_TIMEOUT_S)
            if message is None or message.error() is not None:
                raise LogUnavailable(
                    f"{where}: {message.error() if message is not None else 'nothing to read'}"
                )
            event = self._codec.decode(message.value() or b"")
        except KafkaException as error:
            raise LogUnavailable(f"{where}: {error}") from error
        except CodecError as error:
            raise BrokenDelta(
                f"call {child.call_id}: its parent at {where} cannot be read: {error}"
            ) from error
        if not isinstance(event, LlmCall) or message.offset() != offset:
            raise BrokenDelta(f"call {child.call_id}: the record at {where} is not a call")
        return event


class _Memory:
    """The last expanded calls, up to a number of bytes."""

    def __init__(self) -> None:
        self._calls: OrderedDict[str, LlmCall] = OrderedDict()
        self._bytes = 0

    def get(self, call_id: str) -> LlmCall | None:
        return self._calls.get(call_id)

    def keep(self, call: LlmCall) -> None:
        if call.call_id not in self._calls:
            self._calls[call.call_id] = call
            self._bytes += _size(call)
        while self._bytes > _MEMORY_BYTES:
            self._bytes -= _size(self._calls.popitem(last=False)[1])


def expanded_calls(
    settings: KafkaSettings, codec: Codec, records: Iterable[Record]
) -> Iterator[Record]:
    """Yield records of `llm.calls` in log order, with expanded calls. Raises LogUnavailable.

    A record whose call cannot be restored has no event, and an error.
    """
    reader, memory = CallReader(settings, codec), _Memory()
    for record in records:
        if not isinstance(record.event, LlmCall):
            yield record
            continue
        try:
            call = reader.complete_call(record.event, memory.get)
        except BrokenDelta as error:
            yield msgspec.structs.replace(record, event=None, error=f"BrokenDelta: {error}")
            continue
        memory.keep(call)
        yield msgspec.structs.replace(record, event=call)


def read_calls(
    settings: KafkaSettings,
    codec: Codec,
    *,
    partitions: list[int] | None = None,
    since_ms: int | None = None,
) -> Iterator[Record]:
    """Like `read_all` of `llm.calls`, with expanded calls. Raises LogUnavailable."""
    return expanded_calls(
        settings,
        codec,
        read_all(settings, LLM_CALLS, codec, partitions=partitions, since_ms=since_ms),
    )


def _size(call: LlmCall) -> int:
    return len(call.request or "") + len(call.prompt_token_ids or b"")
