"""Runs one read-only query on a connection, and defines what is asked and answered."""

from __future__ import annotations

import threading
from typing import Any

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


def run_query(connection: Any, query: Query, timeout_s: float) -> Answer:
    """Run one query on a connection of its own. Raises BadQuery."""
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
            rows = found.fetchmany(query.limit + 1)
        finally:
            connection.execute("ROLLBACK")
    except db.InterruptException as error:
        raise BadQuery(f"the query took longer than {timeout_s:g} s and was stopped") from error
    except db.Error as error:
        raise BadQuery(str(error)) from error
    finally:
        timer.cancel()
    return Answer(columns, types, rows[: query.limit], len(rows) > query.limit)
