"""Deletes payloads stored outside Kafka that no event in the log names any more.

It is safe beside live traffic. A payload is stored before the event that names it is written, so
only payloads older than the grace are deleted. Storing a payload again makes it young, which is
checked once more before it is deleted. Names are searched for in the undecoded bytes of calls,
episodes and dead letters.
"""

from __future__ import annotations

import re

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.topics import DEAD_LETTERS, EPISODES, GROUP_PARTITIONS, LLM_CALLS
from services.common.blobs.blob_store import ClaimStore, StoredPayload
from services.common.kafka.settings import KafkaSettings
from services.replay.log_source import LogSource
from services.replay.records import Source

NAMING = (DEAD_LETTERS, EPISODES, LLM_CALLS)
"""Topics whose records name payloads, downstream first."""
GRACE_DAYS = max(LLM_CALLS.retention_ms, EPISODES.retention_ms) / (24 * 3600 * 1000)
"""The retention of the calls and episodes that name payloads, in days."""

_NAME = re.compile(rb"(?=/([0-9a-f]{64}))")


class Pruned(msgspec.Struct, kw_only=True):
    """The report of a run or a dry run."""

    claims: int = 0
    """Number of payloads in the store."""
    young: int = 0
    """Number of payloads younger than the grace."""
    named: int = 0
    """Number of older payloads that events name: a topic keeps its records longer than the grace,
    or a dead letter waits to be redriven.
    """
    removed: int = 0
    removed_bytes: int = 0


def prune(
    store: ClaimStore, settings: KafkaSettings, codec: Codec, before_s: float, *, dry: bool
) -> Pruned:
    """Delete payloads last stored before `before_s` (Unix seconds) that no event names.

    Raises LogUnavailable, OSError.
    """
    report, old = Pruned(), dict[str, StoredPayload]()
    for left in store.found():
        report.claims += 1
        if left.modified_s < before_s:
            old[left.name] = left
    report.young = report.claims - len(old)
    if not old:
        return report
    for name in named(LogSource(settings, codec, NAMING, named=())) & old.keys():
        del old[name]
        report.named += 1
    for left in old.values():
        if dry or store.remove(left):
            report.removed += 1
            report.removed_bytes += left.size
        else:
            report.young += 1
    return report


def named(source: Source) -> set[str]:
    """Return the names of all payloads that events name. Raises LogUnavailable."""
    found: set[str] = set()
    for partition in range(GROUP_PARTITIONS):
        for raw in source.read(NAMING, partition):
            found.update(names_in(raw.value))
    return found


def names_in(value: bytes) -> set[str]:
    """Find names of payloads in a record's bytes; other text that looks like one is included."""
    return {name.decode() for name in _NAME.findall(value)}
