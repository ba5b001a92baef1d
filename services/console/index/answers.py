"""Runs one read-only query on a connection, and defines what is asked and answered."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from services.console.index.database import duckdb
from services.console.index.errors import BadQuery


class Query(msgspec.Struct, frozen=True):
    """What is asked."""

    sql: str
    parameters: list[Any]
    limit: int
    """Most rows of the answer."""


class Answer(msgspec.Struct, frozen=True):
    """The result of a query."""

    columns: list[str]
    types: list[str]
    """DuckDB's types of the columns."""
    rows: list[tuple[Any, ...]]
    is_cut: bool = False
    """Whether there are more rows than the limit."""


def run_query(
    connection: Any, query: Query, timeout_s: float, most_bytes: int | None = None
) -> Answer:
    """Run one query on a connection of its own. `most_bytes`: size of the answer's values. Raises
    BadQuery.
    """
    db = duckdb()
    try:
        statements = connection.extract_statements(query.sql)
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
            found = connection.execute(statements[0], query.parameters or None)
            columns = [column[0] for column in found.description]
            types = [str(column[1]) for column in found.description]
            rows = _rows_within(found, query.limit + 1, most_bytes)
        finally:
            connection.execute("ROLLBACK")
    except db.InterruptException as error:
        raise BadQuery(f"the query took longer than {timeout_s:g} s and was stopped") from error
    except db.Error as error:
        raise BadQuery(str(error)) from error
    finally:
        timer.cancel()
    return Answer(columns, types, rows[: query.limit], len(rows) > query.limit)


_FETCHED = 256
"""Rows that are fetched before their size is looked at."""
_FIXED_BYTES = 8
"""Of a number, a time, or a value that is null."""


def _rows_within(found: Any, most: int, most_bytes: int | None) -> list[tuple[Any, ...]]:
    """Fetch at most so many rows. Raises BadQuery if they are larger than `most_bytes`."""
    if most_bytes is None:
        return found.fetchmany(most)
    rows: list[tuple[Any, ...]] = []
    size = 0
    while some := found.fetchmany(min(_FETCHED, most - len(rows))):
        rows += some
        size += sum(map(_size, some))
        if size > most_bytes:
            raise BadQuery(
                f"the answer has more than {most_bytes // 1024**2:,} MiB in its first "
                f"{len(rows):,} rows: select fewer columns, or fewer rows (LIMIT)"
            )
    return rows


def _size(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        pairs = cast("dict[Any, Any]", value)
        return sum(map(_size, pairs)) + sum(map(_size, pairs.values()))
    if isinstance(value, (tuple, list)):
        return sum(map(_size, cast("Sequence[Any]", value)))
    return _FIXED_BYTES
