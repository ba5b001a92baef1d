"""Inserts many rows with one statement.

A row goes to DuckDB as a JSON document, which it parses itself: converting Python's values one by
one took three times as long (`benchmarks/console.md`). JSON holds no bytes, so a table with bytes
gets its values as they are, a column at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from services.console.index.rows import Row

_COLUMNS = """
    SELECT table_name, column_name, data_type, is_nullable
    FROM duckdb_columns() WHERE NOT internal ORDER BY table_name, column_index
"""


class _Column(msgspec.Struct, frozen=True):
    name: str
    kind: str
    """DuckDB's type."""
    is_nullable: bool


class RowInserter:
    """Inserts rows into the tables that a connection has now."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        tables: dict[str, list[_Column]] = {}
        for table, *column in connection.execute(_COLUMNS).fetchall():
            tables.setdefault(table, []).append(_Column(*column))
        self._columns = tables
        self._statements = {table: _statement(table, found) for table, found in tables.items()}

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        """Insert rows that have every column of the table and no other. Times are Unix
        milliseconds, maps dictionaries. A number that is not finite becomes null, or NaN where null
        is not allowed.

        Raises duckdb.Error or ValueError for a value that does not fit its column.
        """
        if not rows:
            return
        if _has_bytes(self._columns[table]):
            values: list[Any] = [[row[one.name] for row in rows] for one in self._columns[table]]
        else:
            values = [[msgspec.json.encode(row).decode() for row in rows]]
        self._connection.execute(self._statements[table], values)


def _has_bytes(columns: Sequence[_Column]) -> bool:
    return any(column.kind == "BLOB" for column in columns)


def _statement(table: str, columns: Sequence[_Column]) -> str:
    names = ", ".join(f'"{column.name}"' for column in columns)
    if _has_bytes(columns):
        given = ", ".join(
            f'unnest(?::{_given(column.kind)}[]) AS "{column.name}"' for column in columns
        )
        source = f"(SELECT {given}) AS given"
    else:
        fields = ", ".join(f'"{column.name}" {_given(column.kind)}' for column in columns)
        source = f"(SELECT unnest(?::VARCHAR[])::JSON::STRUCT({fields}) AS given)"
    values = ", ".join(map(_value, columns))
    return f"INSERT INTO {table} ({names}) SELECT {values} FROM {source}"


def _given(kind: str) -> str:
    return "BIGINT" if kind == "TIMESTAMP" else kind


def _value(column: _Column) -> str:
    """The SQL from what is given to what is stored."""
    value = f'given."{column.name}"'
    if column.kind == "TIMESTAMP":
        return f"epoch_ms({value})"
    if column.kind == "DOUBLE" and not column.is_nullable:
        return f"coalesce({value}, 'NaN'::DOUBLE)"
    return value
