"""Runs queries on SQLite files, which may only read, for two seconds, up to a hundred rows, and
compares what they give.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

SECONDS = 2.0
MOST_ROWS = 100
_INSTRUCTIONS = 1000
"""Of SQLite's machine, between two looks at the clock."""
_READING = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}

Rows = list[tuple[Any, ...]]


def run_query(file: str, query: str) -> Rows:
    """The rows that the query gives. Raises sqlite3.Error, sqlite3.Warning."""
    until = time.monotonic() + SECONDS
    with closing(sqlite3.connect(f"{Path(file).as_uri()}?mode=ro", uri=True)) as connection:
        connection.set_authorizer(_allowed)
        connection.set_progress_handler(lambda: time.monotonic() > until, _INSTRUCTIONS)
        rows = connection.execute(query).fetchmany(MOST_ROWS + 1)
    if len(rows) > MOST_ROWS:
        raise sqlite3.DataError(f"more than {MOST_ROWS} rows")
    return rows


def _allowed(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


def tables_of(file: str) -> str:
    """The tables as lines of the form `books(id, title, author_id)`."""
    with closing(sqlite3.connect(f"{Path(file).as_uri()}?mode=ro", uri=True)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master ORDER BY rootpage").fetchall()
        columns = {
            name: connection.execute("SELECT name FROM pragma_table_info(?)", (name,)).fetchall()
            for (name,) in names
        }
    return "\n".join(
        f"{name}({', '.join(column for (column,) in found)})" for name, found in columns.items()
    )


def is_right(database: str, query: str, reference: str) -> bool:
    """Whether a query gives the rows of the reference."""
    expected = run_query(database, reference)
    try:
        found = run_query(database, query)
    except (sqlite3.Error, sqlite3.Warning):
        return False
    return same(found, expected, ordered="ORDER BY" in reference)


def same(found: Rows, expected: Rows, *, ordered: bool) -> bool:
    """Whether two results are equal."""
    return found == expected if ordered else Counter(found) == Counter(expected)
