"""Answers read-only SQL over the index, from any thread or process.

IndexReader(path).rows("SELECT * FROM runs WHERE run_id = ?", ["r1"])
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from services.console.index.database import connect, duckdb
from services.console.index.errors import BadQuery, NoIndex

TIMEOUT_S = 30.0
LIMIT = 100_000
"""Rows of an answer: more than a page or a terminal shows."""


class Answer(msgspec.Struct, frozen=True):
    """The result of a query."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    is_cut: bool = False
    """Whether there are more rows than the limit."""


def answer(
    connection: Any, sql: str, parameters: Sequence[Any], limit: int, timeout_s: float
) -> Answer:
    """Run one query on a connection of its own. Raises BadQuery."""
    db = duckdb()
    try:
        statements = connection.extract_statements(sql)
        if len(statements) != 1:
            raise BadQuery(f"one statement is expected, got {len(statements)}")
        if statements[0].type not in (db.StatementType.SELECT, db.StatementType.EXPLAIN):
            kind = str(statements[0].type).rpartition(".")[2]
            raise BadQuery(f"{kind} is not allowed: the index is read-only. Use SELECT")
    except db.Error as error:
        raise BadQuery(str(error)) from error
    timer = threading.Timer(timeout_s, connection.interrupt)
    timer.start()
    try:
        connection.execute("BEGIN TRANSACTION READ ONLY")
        try:
            found = connection.execute(statements[0], list(parameters) or None)
            columns = [column[0] for column in found.description]
            rows = found.fetchmany(limit + 1)
        finally:
            connection.execute("ROLLBACK")
    except db.InterruptException as error:
        raise BadQuery(f"the query took longer than {timeout_s:g} s and was stopped") from error
    except db.Error as error:
        raise BadQuery(str(error)) from error
    finally:
        timer.cancel()
    return Answer(columns, rows[:limit], len(rows) > limit)


class IndexReader:
    """Reads the index at a path. Thread-safe: every query has a connection of its own."""

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return the rows of a query as dictionaries. Raises BadQuery, NoIndex."""
        found = self.ask(sql, parameters)
        return [dict(zip(found.columns, row, strict=True)) for row in found.rows]

    def ask(self, sql: str, parameters: Sequence[Any] = (), limit: int = LIMIT) -> Answer:
        """Return at most `limit` rows of a query. Raises BadQuery, NoIndex."""
        if not self._path.exists():
            raise NoIndex(
                f"there is no index at {self._path}: start the console, which makes it, or set "
                "FULGURITE_CONSOLE_INDEX to where it is"
            )
        connection = self._connect()
        try:
            return answer(connection, sql, parameters, limit, self._timeout_s)
        finally:
            connection.close()

    def _connect(self) -> Any:
        db = duckdb()
        try:
            return connect(self._path, read_only=True)
        except db.ConnectionException:
            # This process writes the index: share its database.
            return connect(self._path)
        except db.IOException as error:
            raise NoIndex(f"{self._path} cannot be opened: {error}") from error
