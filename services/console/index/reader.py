"""Answers read-only SQL over the index, from any thread or process.

In the process that writes the index, a query shares its database. In another one it is sent to that
process (`services.console.index.remote`), or reads the file if nobody writes it.

IndexReader(path).rows("SELECT * FROM runs WHERE run_id = ?", ["r1"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.console.index.answers import Answer, Query, run_query
from services.console.index.database import connect, duckdb, is_locked
from services.console.index.errors import BadQuery, NoIndex
from services.console.index.remote import ask_writer

TIMEOUT_S = 30.0
LIMIT = 100_000
"""Rows of an answer: more than a page or a terminal shows."""


class IndexReader:
    """Reads the index at a path. Thread-safe: every query has a connection of its own."""

    def __init__(
        self, path: Path, *, timeout_s: float = TIMEOUT_S, most_bytes: int | None = None
    ) -> None:
        """`most_bytes`: size of an answer's values, where this process reads the file."""
        self.path = path
        self._timeout_s = timeout_s
        self._most_bytes = most_bytes

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return all rows of a query as dictionaries. Raises NoIndex, and BadQuery also for more
        than `LIMIT` rows.
        """
        found = self.ask(sql, parameters)
        if found.is_cut:
            raise BadQuery(
                f"the query has more than {LIMIT:,} rows, and a part of them would be no answer: "
                f"aggregate in SQL, or add LIMIT. It begins with {sql.strip()[:80]!r}"
            )
        return [dict(zip(found.columns, row, strict=True)) for row in found.rows]

    def ask(self, sql: str, parameters: Sequence[Any] = (), limit: int = LIMIT) -> Answer:
        """Return at most `limit` rows of a query. Raises BadQuery, NoIndex."""
        if not self.path.exists():
            raise NoIndex(
                f"there is no index at {self.path}: start the console, which makes it, or set "
                "FULGURITE_CONSOLE_INDEX to where it is"
            )
        query = Query(sql, list(parameters), limit)
        try:
            connection = self._connect()
        except duckdb().Error as error:
            if not is_locked(error):
                raise NoIndex(
                    f"{self.path} cannot be read as an index ({error}). Delete it while the "
                    "console is stopped: its next start builds it again"
                ) from error
            return ask_writer(self.path, query, self._timeout_s)
        try:
            return run_query(connection, query, self._timeout_s, self._most_bytes)
        finally:
            connection.close()

    def _connect(self) -> Any:
        try:
            return connect(self.path, read_only=True)
        except duckdb().ConnectionException:
            # This process writes the index: share its database.
            return connect(self.path)
