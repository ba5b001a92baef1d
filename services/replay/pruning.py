"""Which claims nobody can redeem any more, and their removal. Safe beside live traffic: a payload
is left before the event that names it is written, so only those go that are older than the grace;
whoever leaves one again makes it young, which is looked at once more before it is taken away.

What names a claim is looked for in the bytes of the log, undecoded: in calls, in episodes and in
dead letters, whatever is within.
"""

from __future__ import annotations

import re

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.topics import DEAD_LETTERS, EPISODES, GROUP_PARTITIONS, LLM_CALLS
from services.common.blobs.blob_store import ClaimStore, Left
from services.common.kafka.settings import KafkaSettings
from services.replay.log_source import LogSource
from services.replay.records import Source

NAMING = (DEAD_LETTERS, EPISODES, LLM_CALLS)
"""Topics whose records name claims, downstream first."""
GRACE_DAYS = max(LLM_CALLS.retention_ms, EPISODES.retention_ms) / (24 * 3600 * 1000)
"""As long as a call or an episode that names a claim is kept."""

_NAME = re.compile(rb"(?=/([0-9a-f]{64}))")


class Pruned(msgspec.Struct, kw_only=True):
    """What a run did, or would do."""

    claims: int = 0
    """All that there are."""
    young: int = 0
    """Younger than the grace."""
    named: int = 0
    """Old, and named in the log: its topics keep longer than the grace, or a dead letter waits to
    be redriven.
    """
    removed: int = 0
    removed_bytes: int = 0


def prune(
    store: ClaimStore, settings: KafkaSettings, codec: Codec, before_s: float, *, dry: bool
) -> Pruned:
    """Remove what was last left before that time (seconds since 1970) and is not named. Raises
    LogUnavailable, OSError.
    """
    report, old = Pruned(), dict[str, Left]()
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
    """The names of all claims that the log has. Raises LogUnavailable."""
    found: set[str] = set()
    for partition in range(GROUP_PARTITIONS):
        for raw in source.read(NAMING, partition):
            found.update(names_in(raw.value))
    return found


def names_in(value: bytes) -> set[str]:
    """The names of claims in a record, and perhaps others that look like one."""
    return {name.decode() for name in _NAME.findall(value)}
