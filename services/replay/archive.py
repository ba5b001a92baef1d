"""Writes and reads an archive: the topics' records as Parquet files, byte for byte.

It keeps records beyond the topics' retention. Files are partitioned by topic and day (UTC, by
record time):

    DIR/topic=llm.calls/day=2026-01-31/partition-003.<id>.parquet       offset, timestamp, key, value, event_id, event_type
    DIR/archive.json                                                     how far each partition has been archived

A day may have several files of a partition. `archive` continues where the last run ended.
`archive.json` is written last, so a run that was killed is repeated; records that are then in two
files are read once. Encrypted payloads stay encrypted. Payloads stored outside Kafka are copied to
`claims/`, and read from there.
"""  # noqa: E501 - a table

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.calls.deltas import restore
from fulgurite.errors import BrokenDelta
from fulgurite.events import LlmCall
from fulgurite.topics import EPISODES, LLM_CALLS, Topic
from services.common.kafka.settings import KafkaSettings
from services.replay.archived_claims import ArchivedClaims
from services.replay.columns import RECORDS
from services.replay.errors import BadArchive, BadArgument
from services.replay.log_source import DOWNSTREAM_FIRST, LogSource, Place
from services.replay.parquet import ParquetFolder, count_rows, read_rows
from services.replay.records import Raw, Source

_INDEX = "archive.json"
_MOST_OPEN = 4
"""Unfinished files: each holds rows in memory. Around midnight records of two days alternate."""
_WITH_CLAIMS = (LLM_CALLS, EPISODES)
_COLUMNS = ("offset", "timestamp", "key", "value", "event_id", "event_type")


class Archived(msgspec.Struct, kw_only=True):
    """The report of a run."""

    records: dict[str, int]
    """Number of records added, by topic."""
    gaps: list[str]
    """Ranges of offsets that retention had removed before they were archived."""
    claims: int
    """Number of offloaded payloads copied."""
    lost_claims: list[str]
    """Payloads that are missing or damaged, with the reason."""


def archive(
    settings: KafkaSettings,
    codec: Codec,
    folder: Path,
    topics: Collection[Topic],
    on_progress: Callable[[str, int], None],
) -> Archived:
    """Add the records that the archive lacks. Raises LogUnavailable, BadArchive, OSError."""
    done = read_index(folder)
    source = LogSource(settings, codec, topics, done, named=topics)
    counts = {topic.name: 0 for topic in topics}
    files = ParquetFolder(folder, RECORDS, _MOST_OPEN)
    claims, copied, lost = ArchivedClaims(folder), 0, dict[str, None]()
    for topic in topics:
        for partition in range(topic.partitions):
            for raw in source.read((topic,), partition):
                counts[topic.name] += 1
                if topic in _WITH_CLAIMS:
                    more, gone = claims.copy(raw.value, codec)
                    copied += more
                    lost.update(dict.fromkeys(gone))
                part = f"topic={topic.name}/day={_day(raw.timestamp)}/partition-{partition:03d}"
                files.write(part, [{name: getattr(raw, name) for name in _COLUMNS}])
            on_progress(topic.name, counts[topic.name])
    files.close()
    ends = {
        (topic.name, number): source.end((topic.name, number))
        for topic in topics
        for number in range(topic.partitions)
    }
    _write_index(folder, done | ends)
    return Archived(records=counts, gaps=source.gaps, claims=copied, lost_claims=list(lost))


def read_index(folder: Path) -> dict[Place, int]:
    """Read the next offset of each partition. Raises BadArchive."""
    path = folder / _INDEX
    if not path.exists():
        return {}
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[int, int]])
    except msgspec.DecodeError as error:
        raise BadArchive(
            f"{path} is damaged: {error}. Restore it from a backup, or archive to a new folder."
        ) from error
    return {
        (topic, partition): offset
        for topic, partitions in found.items()
        for partition, offset in partitions.items()
    }


def _write_index(folder: Path, ends: dict[Place, int]) -> None:
    found: dict[str, dict[int, int]] = {}
    for (topic, partition), end in sorted(ends.items()):
        found.setdefault(topic, {})[partition] = end
    unfinished = folder / f".{_INDEX}"
    with unfinished.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(found)))
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(folder / _INDEX)


class ArchiveSource:
    """Reads an archive as a `Source`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._claims = ArchivedClaims(folder)
        self.at_hand = self._claims.at_hand
        if not (folder / _INDEX).exists():
            raise BadArgument(
                f"{folder} is not an archive: it has no {_INDEX}. `fulgurite archive {folder}` "
                "creates one"
            )
        self.ends = read_index(folder)

    def count(self, topics: Collection[Topic], since_ms: int | None = None) -> int:
        """See `Source`."""
        return sum(
            count_rows(path) for topic in topics for path in self._files(topic, "*", since_ms)
        )

    def read(
        self, topics: Collection[Topic], partition: int, since_ms: int | None = None
    ) -> Iterator[Raw]:
        """See `Source`. Records that were archived twice come once."""
        for topic in topics:
            paths = self._files(topic, f"{partition:03d}", since_ms)
            last = -1
            for raw in self._merged(paths, topic, partition):
                if raw.offset > last and (since_ms is None or raw.timestamp >= since_ms):
                    yield raw
                last = max(last, raw.offset)

    def complete_call(self, call: LlmCall, held: dict[str, LlmCall]) -> LlmCall:
        """See `Source`. A parent must have been read before; payloads come from the archive."""
        chain = [call]
        while (ref := chain[-1].parent) is not None:
            parent = held.get(ref.call_id)
            if parent is None:
                raise BrokenDelta(
                    f"call {call.call_id}: its parent call {ref.call_id} is not in the archive"
                )
            chain.append(parent)
        whole = chain.pop()
        while chain:
            whole = restore(chain.pop(), whole)
        return self.at_hand(whole)

    def _files(self, topic: Topic, partition: str, since_ms: int | None) -> list[Path]:
        found = sorted(
            (self._folder / f"topic={topic.name}").glob(f"day=*/partition-{partition}.*.parquet")
        )
        return [
            path
            for path in found
            if since_ms is None or path.parent.name >= f"day={_day(since_ms)}"
        ]

    def _merged(self, paths: Collection[Path], topic: Topic, partition: int) -> Iterator[Raw]:
        """Yield the records of files in the order of their offsets.

        A file is opened once its first record may be next: an archive of years has thousands.
        """
        firsts = ((next(read_rows(path, ("offset",)), None), path) for path in paths)
        waiting = deque(sorted((row["offset"], path) for row, path in firsts if row is not None))
        opened: list[tuple[int, Path, Raw, Iterator[Raw]]] = []
        while waiting or opened:
            if waiting and (not opened or waiting[0][0] <= opened[0][0]):
                _, path = waiting.popleft()
                records = self._file(path, topic, partition)
            else:
                _, path, raw, records = heapq.heappop(opened)
                yield raw
            following = next(records, None)
            if following is not None:
                heapq.heappush(opened, (following.offset, path, following, records))

    def _file(self, path: Path, topic: Topic, partition: int) -> Iterator[Raw]:
        for row in read_rows(path, _COLUMNS):
            yield Raw(topic=topic.name, partition=partition, **row)


class Chained:
    """Reads an archive, then the records in Kafka that it does not have."""

    def __init__(self, archived: ArchiveSource, live: LogSource) -> None:
        self._archived = archived
        self._live = live

    def count(self, topics: Collection[Topic], since_ms: int | None = None) -> int:
        """See `Source`."""
        return self._archived.count(topics, since_ms) + self._live.count(topics, since_ms)

    def read(
        self, topics: Collection[Topic], partition: int, since_ms: int | None = None
    ) -> Iterator[Raw]:
        """See `Source`."""
        yield from self._archived.read(topics, partition, since_ms)
        yield from self._live.read(topics, partition, since_ms)

    def complete_call(self, call: LlmCall, held: dict[str, LlmCall]) -> LlmCall:
        """See `Source`."""
        return self._archived.at_hand(self._live.complete_call(call, held))


def open_source(
    settings: KafkaSettings,
    codec: Codec,
    folder: Path | None,
    *,
    archive_only: bool = False,
    topics: Collection[Topic] = DOWNSTREAM_FIRST,
) -> Source:
    """Open Kafka, an archive, or both. Raises BadArgument, BadArchive, LogUnavailable.

    `topics`: those of Kafka that are read, in the order in which their ends are looked up.
    """
    if folder is None:
        if archive_only:
            raise BadArgument("--archive-only needs --archive DIR")
        return LogSource(settings, codec, topics)
    archived = ArchiveSource(folder)
    return (
        archived
        if archive_only
        else Chained(archived, LogSource(settings, codec, topics, archived.ends))
    )


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d")
