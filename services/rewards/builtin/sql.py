"""1 if the answer's query gives what the reference's gives on the task's SQLite database, else 0:
execution accuracy.

As Spider and BIRD measure it (Yu et al., 2018; Li et al., 2023): both queries are executed, their
rows compared; their order counts only if the reference ends in ORDER BY. The database is opened
read-only, a query may only read, for `timeout_s` and up to `max_rows` rows. The task's field
`database` is its path. For the reference "SELECT name FROM t WHERE n > 1": "select t.name from t
where 1 < n" → 1.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlglot
from sqlglot.errors import SqlglotError

from fulgurite.episodes.view import EpisodeView
from services.rewards.builtin.answers import answer_of, code_of, field_of, references_of
from services.rewards.builtin.bounded import within
from services.rewards.errors import RewardFailed

_READING = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
_STEPS = 1000
"""Instructions of SQLite's machine between two looks at the clock."""

_LONGEST = 10_000_000
"""Bytes of one value: a function that makes a longer one would not be interrupted."""

Row = tuple[Any, ...]


def reward(
    episode: EpisodeView,
    reference: str,
    after: str,
    database: str,
    timeout_s: float,
    max_rows: float,
) -> float:
    """In {0, 1}. Raises RewardFailed for a task without its fields, a missing database, or a
    reference that cannot be executed.
    """
    path = Path(str(field_of(episode, database)))
    if not path.is_file():
        raise RewardFailed(
            f"the task's {database!r} names {path}, which is no file where the reward worker runs"
        )
    expected = [
        (_expected(path, query, timeout_s, int(max_rows)), _is_ordered(query))
        for query in references_of(episode, reference)
    ]
    answer = answer_of(episode, after)
    return within(
        timeout_s, lambda: _worth(expected, _rows(path, code_of(answer), timeout_s, int(max_rows)))
    )


def _worth(expected: list[tuple[list[Row], bool]], rows: list[Row]) -> float:
    return float(any(_same(rows, wanted, ordered) for wanted, ordered in expected))


def _expected(path: Path, query: str, timeout_s: float, max_rows: int) -> list[Row]:
    try:
        return _rows(path, query, timeout_s, max_rows)
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise RewardFailed(f"the reference {query[:80]!r} cannot be executed: {error}") from error


def _rows(path: Path, query: str, timeout_s: float, max_rows: int) -> list[Row]:
    until = time.monotonic() + timeout_s
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
        connection.set_authorizer(_allowed)
        connection.set_progress_handler(lambda: time.monotonic() > until, _STEPS)
        rows = connection.execute(query).fetchmany(max_rows + 1)
    if len(rows) > max_rows:
        raise sqlite3.DataError(f"more than {max_rows} rows")
    return rows


def _allowed(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


def _same(rows: list[Row], expected: list[Row], ordered: bool) -> bool:
    return rows == expected if ordered else Counter(rows) == Counter(expected)


def _is_ordered(query: str) -> bool:
    try:
        return sqlglot.parse_one(query, dialect="sqlite").args.get("order") is not None
    except SqlglotError as error:
        raise RewardFailed(f"the reference {query[:80]!r} cannot be read: {error}") from error
