"""Keeps records as they are in the log, compressed in blocks, so that a page shows texts and tokens
in full without Kafka.

A block holds neighbouring records of one partition: similar calls compress well together. Calls
stay deltas, so a record takes what is new in its turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import cramjam
import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.calls.deltas import CHAIN, restore
from fulgurite.errors import BrokenDelta
from fulgurite.events import LlmCall
from fulgurite.topics import DEAD_LETTERS, LLM_CALLS
from services.common.runtime.redaction import without_secrets
from services.console.index.rows import Row

TOPICS = frozenset({LLM_CALLS.name, DEAD_LETTERS.name})
BLOCK_BYTES = 32 * 1024
"""Bytes of a block before compression. To give one row DuckDB reads up to 2,048 neighbours: eight
times these bytes made a record's reading five times as slow, in a file smaller by a sixth.
"""
_LEVEL = 3

Entry = tuple[int, int, bytes]
"""Offset, record time in Unix milliseconds, bytes."""
_Block = list[tuple[int, bytes]]


class Queries(Protocol):
    """What reads the index, such as an `IndexReader`."""

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        ...


def make_blocks(topic: str, partition: int, entries: Sequence[Entry]) -> Iterator[Row]:
    """Make the rows of `payloads` of a partition's records, which are in order of their offsets."""
    block: list[Entry] = []
    size = 0
    for entry in entries:
        block.append(entry)
        size += len(entry[2])
        if size >= BLOCK_BYTES:
            yield _row(topic, partition, block)
            block, size = [], 0
    if block:
        yield _row(topic, partition, block)


def _row(topic: str, partition: int, block: Sequence[Entry]) -> Row:
    packed = msgspec.msgpack.encode([(offset, value) for offset, _, value in block])
    return {
        "topic": topic,
        "partition": partition,
        "first_offset": block[0][0],
        "last_offset": block[-1][0],
        "written_at": block[-1][1],
        "data": bytes(cramjam.zstd.compress(packed, level=_LEVEL)),
    }


class PayloadReader:
    """Reads records and complete calls from the index. Not thread-safe: make one per request."""

    def __init__(self, reader: Queries, codec: Codec) -> None:
        self._reader = reader
        self._codec = codec
        self._blocks: dict[tuple[str, int], dict[int, bytes]] = {}
        """Records that were decompressed, by topic and partition."""

    def record(self, topic: str, partition: int, offset: int) -> bytes | None:
        """Return a record's bytes; None if the index does not hold them (any more)."""
        known = self._blocks.setdefault((topic, partition), {})
        if offset not in known:
            found = self._reader.rows(
                "SELECT data FROM payloads WHERE topic = ? AND partition = ? "
                "AND first_offset <= ? AND last_offset >= ?",
                [topic, partition, offset, offset],
            )
            for row in found:
                known.update(_unpack(row["data"]))
        return known.get(offset)

    def call(self, partition: int, offset: int) -> LlmCall | None:
        """Return a complete call by its place; None if it or a parent is not held (any more).

        Texts stored outside Kafka are not fetched. Raises BrokenDelta, CodecError.
        """
        chain: list[LlmCall] = []
        place = (partition, offset)
        while True:
            value = self.record(LLM_CALLS.name, *place)
            event = None if value is None else self._codec.decode(value)
            if not isinstance(event, LlmCall):
                return None
            chain.append(event)
            if event.parent is None:
                break
            if len(chain) > CHAIN:
                raise BrokenDelta(f"call {chain[0].call_id}: its chain of parents is too long")
            place = (event.parent.partition, event.parent.offset)
        complete = chain.pop()
        while chain:
            complete = restore(chain.pop(), complete)
        error = complete.error
        return msgspec.structs.replace(
            complete, error=None if error is None else without_secrets(error)
        )


def _unpack(data: bytes) -> dict[int, bytes]:
    packed = bytes(cramjam.zstd.decompress(data))
    return dict(msgspec.msgpack.decode(packed, type=_Block))
