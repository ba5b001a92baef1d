"""Indexes an archive, so that it has the same tables as the console's index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fulgurite.avro.codec import Codec
from fulgurite.errors import CodecError
from fulgurite.topics import TOPICS
from services.common.kafka.codec import make_codec
from services.common.kafka.dead_letters import words_of
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.clock import now_ms
from services.console.index.batch import LogRecord
from services.console.index.database import delete_index
from services.console.index.errors import IndexFailed, OutdatedIndex
from services.console.index.writer import IndexWriter
from services.replay.archive import ArchiveSource
from services.replay.records import Raw

FILE = "index.duckdb"
_BATCH = 5_000


def index_archive(folder: Path) -> Path:
    """Add the records that the archive's index lacks; returns its path.

    Raises BadArgument, BadArchive, OSError.
    """
    source, path = ArchiveSource(folder), folder / FILE
    try:
        try:
            _add_records(source, path)
        except OutdatedIndex:
            delete_index(path)
            _add_records(source, path)
    except IndexFailed as error:
        raise OSError(str(error)) from error
    return path


def _add_records(source: ArchiveSource, path: Path) -> None:
    codec = make_codec()
    writer = IndexWriter(path, codec, KafkaSettings().topic_prefix, now_ms)
    try:
        known = writer.positions()
        for topic in TOPICS:
            for partition in range(topic.partitions):
                place = (topic.name, partition)
                if known.get(place, 0) >= source.ends.get(place, 0):
                    continue
                batch: list[LogRecord] = []
                for record in _records(source.read((topic,), partition), codec):
                    if record.offset >= known.get(place, 0):
                        batch.append(record)
                    if len(batch) == _BATCH:
                        writer.write(batch)
                        batch = []
                writer.write(batch, {place: source.ends[place]})
    finally:
        writer.close()


def _records(found: Iterator[Raw], codec: Codec) -> Iterator[LogRecord]:
    for raw in found:
        event, error = None, None
        try:
            event = codec.decode(raw.value, packed=True)
        except CodecError as problem:
            error = words_of(problem)
        yield LogRecord(
            raw.topic, raw.partition, raw.offset, raw.timestamp, raw.value, event, error
        )
