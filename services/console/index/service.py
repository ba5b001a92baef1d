"""Keeps the index and answers queries of other processes, in threads of this process."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from fulgurite.avro.codec import Codec
from fulgurite.cost.prices import Prices, parse_prices
from fulgurite.errors import BadPrices
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs
from services.common.runtime.clock import now_ms
from services.console.index.database import delete_index
from services.console.index.errors import IndexFailed, IndexLocked, OutdatedIndex
from services.console.index.follower import IndexFollower
from services.console.index.query_server import QueryServer
from services.console.index.reader import IndexReader
from services.console.index.settings import IndexSettings
from services.console.index.writer import IndexWriter

logger = logs.get(__name__)

_QUERY_WAIT_S = 10.0
"""How long a start waits for whoever reads the file without a console, such as `fulgurite sql`."""
_RETRY_S = 0.1


class IndexService:
    """The index of a running console."""

    def __init__(self, settings: IndexSettings, kafka: KafkaSettings, codec: Codec) -> None:
        """Open the index. Raises IndexFailed."""
        self._settings = settings
        self._kafka = kafka
        self._codec = codec
        self._stop = threading.Event()
        self._prices = None if settings.prices is None else _read_prices(settings.prices)
        self._writer = self._open()
        self._follower = self._make_follower()
        self._queries = QueryServer(settings.index, settings.query_timeout_s)
        self.reader = IndexReader(settings.index, timeout_s=settings.query_timeout_s)
        """For the pages of this process."""
        self.failure: BaseException | None = None
        """Why reading the log ended, if it did."""
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)

    def start(self) -> None:
        """Begin to read the log."""
        self._thread.start()

    def close(self) -> None:
        """Stop. What was read stays in the file."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._queries.close()
        self._writer.close()

    def wait(self) -> None:
        """Wait until the log is no longer read: after `close`, or a `failure`."""
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._follower.run()
                except OutdatedIndex as error:
                    self._rebuild(error)
        except Exception as error:  # noqa: BLE001 - the edge of the thread: `failure` ends the process
            self.failure = error

    def _open(self) -> IndexWriter:
        try:
            return self._make_writer()
        except OutdatedIndex as error:
            _warn(error)
            delete_index(self._settings.index)
            return self._make_writer()

    def _rebuild(self, reason: OutdatedIndex) -> None:
        # In place: a page may be reading the file, which keeps its database open in this process.
        _warn(reason)
        self._writer.clear()
        self._follower = self._make_follower()

    def _make_writer(self) -> IndexWriter:
        """Open the file, once a query that reads it without a console has ended."""
        deadline = time.monotonic() + _QUERY_WAIT_S
        while True:
            try:
                return self._try_to_open()
            except IndexLocked:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_S)

    def _try_to_open(self) -> IndexWriter:
        writer = IndexWriter(
            self._settings.index,
            self._codec,
            self._kafka.topic_prefix,
            now_ms,
            memory=self._settings.memory,
            threads=self._settings.threads,
            characters=self._settings.text_characters,
            keeps_payloads=self._settings.payloads,
        )
        if self._prices is not None:
            writer.write_prices(self._prices)
        return writer

    def _make_follower(self) -> IndexFollower:
        return IndexFollower(
            self._kafka, self._codec, self._writer, self._settings, now_ms, self._stop
        )


def _warn(reason: OutdatedIndex) -> None:
    logger.warning("the index is built again from the log", reason=str(reason))


def _read_prices(path: Path) -> Prices:
    try:
        return parse_prices(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, BadPrices) as error:
        raise IndexFailed(f"FULGURITE_CONSOLE_PRICES={path} cannot be read: {error}") from error
