"""An index in memory, with rows that a test gives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar

import duckdb

from services.console.index.database import read_definitions
from services.console.pages.address import Address
from services.console.pages.blocks import Block, Columns
from services.console.pages.formats import time_of
from services.console.pages.reading import Asked

B = TypeVar("B")

NOW_MS = 1_800_000_000_000
NOW = time_of(NOW_MS)

_DEFAULTS = {"VARCHAR": "", "BOOLEAN": False, "TIMESTAMP": NOW, "DOUBLE": 0.0}


class MemoryIndex:
    """The tables and views of the index."""

    def __init__(self) -> None:
        self._connection: Any = duckdb.connect(config={"threads": "1"})
        for name in ("tables.sql", "views.sql"):
            self._connection.execute(read_definitions(name))

    def add(self, table: str, **values: Any) -> None:
        """Add a row. Columns that are not given are null, or empty where they must not be."""
        columns: list[tuple[str, str, str]] = self._connection.execute(
            "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
            "WHERE table_name = ?",
            [table],
        ).fetchall()
        unknown = values.keys() - {name for name, _, _ in columns}
        assert not unknown, f"{table} has no {unknown}"
        row = {
            name: values.get(name, None if nullable == "YES" else _default(kind))
            for name, kind, nullable in columns
        }
        kinds = {name: kind for name, kind, _ in columns}
        names = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join(
            f"?::JSON::{kinds[name]}" if _is_nested(kinds[name]) else "?" for name in row
        )
        given = [
            json.dumps(value) if value is not None and _is_nested(kinds[name]) else value
            for name, value in row.items()
        ]
        self._connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", given)

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """The rows of a statement."""
        found = self._connection.execute(sql, list(parameters))
        columns = [column[0] for column in found.description]
        return [dict(zip(columns, row, strict=True)) for row in found.fetchall()]

    def revision(self) -> int:
        """See Index."""
        return 0


def asked(index: MemoryIndex, path: str, **query: str) -> Asked:
    """What a view is given."""
    return Asked(index, Address.read(path, query.items()), NOW_MS)


def minutes_ago(minutes: int) -> datetime:
    """A time before now."""
    return time_of(NOW_MS - minutes * 60_000)


def flat(blocks: Sequence[Block]) -> Iterator[Block]:
    """Every block, those in columns too."""
    for block in blocks:
        yield block
        if isinstance(block, Columns):
            yield from flat(block.items)


def only(blocks: Sequence[Block], kind: type[B]) -> list[B]:
    """The blocks of a kind."""
    return [block for block in flat(blocks) if isinstance(block, kind)]


def texts(rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    """The texts of a table's cells."""
    return [[one.text for one in row] for row in rows]


def _is_nested(kind: str) -> bool:
    return kind.endswith("[]") or kind.startswith("MAP")


def _default(kind: str) -> Any:
    if kind.endswith("[]"):
        return []
    if kind.startswith("MAP"):
        return {}
    return _DEFAULTS.get(kind, 0)
