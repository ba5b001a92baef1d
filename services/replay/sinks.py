"""Writes rebuilt rows to a topic like `trajectories`, or to a folder of Parquet files.

It never writes to a topic of the deployment.
"""

from __future__ import annotations

import re
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.events import GroupClosed
from fulgurite.topics import TOPICS, TRAJECTORIES, Topic
from services.common.kafka.delivery import Delivery
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topic, records_in
from services.replay.closings import Row
from services.replay.errors import BadArgument, TargetInUse
from services.replay.parquet import ParquetFolder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_IN_FLIGHT = 5_000
_LINGER_MS = 50
"""Producer linger: rows may wait, and large batches are cheaper."""


class Sink(Protocol):
    """Writes rows; `close` returns when all are written."""

    def put(self, partition: int, rows: tuple[Row, ...]) -> None:
        """Write the rows of one group, in order. Raises LogUnavailable, OSError."""
        ...

    def close(self) -> None:
        """Wait until all rows are written. Raises LogUnavailable, OSError."""
        ...


def open_sink(target: str, *, append: bool, settings: KafkaSettings, codec: Codec) -> Sink:
    """Open `DIR.parquet`, or a topic named without the deployment's prefix.

    Raises BadArgument, TargetInUse, LogUnavailable.
    """
    if target.endswith(".parquet"):
        return ParquetSink(Path(target), append=append)
    return TopicSink(target, append=append, settings=settings, codec=codec)


class TopicSink:
    """Writes rows to a topic, keyed and partitioned as in `trajectories`."""

    def __init__(self, name: str, *, append: bool, settings: KafkaSettings, codec: Codec) -> None:
        if not _NAME.fullmatch(name):
            raise BadArgument(
                f"--into {name!r} is neither the name of a topic nor a folder DIR.parquet"
            )
        if name in {topic.name for topic in TOPICS}:
            raise TargetInUse(
                f"{name} is a topic of the deployment, and a replay never writes there: choose "
                "another name"
            )
        self.topic: Topic = msgspec.structs.replace(TRAJECTORIES, name=name)
        if (
            not create_topic(settings, self.topic)
            and not append
            and records_in(settings, self.topic)
        ):
            raise TargetInUse(
                f"topic {settings.topic(self.topic)} has records already: choose another name, "
                "delete it, or add --append"
            )
        self._producer = EventProducer(settings, codec, "fulgurite-replay", linger_ms=_LINGER_MS)
        self._sent: deque[Future[Delivery]] = deque()

    def put(self, partition: int, rows: tuple[Row, ...]) -> None:
        """See `Sink`."""
        for row in rows:
            self._sent.append(self._producer.submit(self.topic, row.group_id, row))
        while len(self._sent) > _IN_FLIGHT:
            self._sent.popleft().result()

    def close(self) -> None:
        """See `Sink`."""
        try:
            while self._sent:
                self._sent.popleft().result()
        finally:
            self._producer.close()


class ParquetSink:
    """Writes rows as the columns of `services.replay.columns`, one file per partition."""

    def __init__(self, folder: Path, *, append: bool) -> None:
        if folder.exists() and any(folder.iterdir()) and not append:
            raise TargetInUse(
                f"{folder} is not empty: choose another folder, remove it, or add --append"
            )
        from services.replay.columns import ROWS, row_of

        self._row_of = row_of
        self._folder = ParquetFolder(folder, ROWS)

    def put(self, partition: int, rows: tuple[Row, ...]) -> None:
        """See `Sink`. A `GroupClosed` is not written."""
        self._folder.write(
            f"part-{partition:03d}",
            [self._row_of(row) for row in rows if not isinstance(row, GroupClosed)],
        )

    def close(self) -> None:
        """See `Sink`."""
        self._folder.close()
