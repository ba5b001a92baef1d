"""Defines the command `fulgurite sql`: queries the console's index, or an archive, with SQL."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from services.cli.errors import report_errors
from services.cli.output import print_json, print_table
from services.common.runtime.escaping import escaped
from services.common.runtime.extras import how_to_install
from services.common.runtime.terminal import make_console, plain
from services.console.index.answers import Answer
from services.console.index.errors import BadQuery, IndexFailed
from services.console.index.reader import LIMIT, IndexReader
from services.console.index.settings import IndexSettings

_TABLES = (
    "SELECT table_name, table_type, string_agg(column_name, ', ' ORDER BY ordinal_position) AS "
    "columns FROM information_schema.tables JOIN information_schema.columns USING (table_name) "
    "GROUP BY ALL ORDER BY ALL"
)


def sql(
    query: Annotated[
        str | None, typer.Argument(metavar="SELECT", help="The query; without it, list the tables.")
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The index; default: FULGURITE_CONSOLE_INDEX."),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Query this archive instead; its index is kept there, in `index.duckdb`.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=LIMIT, help="Print at most this many rows.")] = (
        1_000
    ),
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Seconds that the query may take; default: FULGURITE_CONSOLE_QUERY_TIMEOUT_S. A "
            "running console has its own limit.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a list of rows.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
) -> None:
    """Query what the topics say, in DuckDB's SQL: docs/reference/tables.md lists the tables.

    The console keeps the index. Queries only read: a running console answers them; without one the
    file is read. Exits 1 for an invalid query, 2 if there is no index to read.

    Example: `fulgurite sql "SELECT run_id, rollouts, mean_train_reward FROM runs"`
    """
    with report_errors("sql"):
        if as_json and as_csv:
            raise ValueError("--json and --csv exclude each other")
        settings = IndexSettings()
        path = _index_archive(archive) if archive is not None else index or settings.index
        reader = IndexReader(path, timeout_s=timeout or settings.query_timeout_s)
        try:
            found = reader.ask(query or _TABLES, limit=limit)
        except BadQuery as error:
            raise ValueError(str(error)) from error
        except IndexFailed as error:
            raise OSError(str(error)) from error
    if as_json:
        print_json([dict(zip(found.columns, row, strict=True)) for row in found.rows])
    elif as_csv:
        _print_csv(found)
    else:
        print_table(_table(found))
    if found.is_cut:
        _say(make_console(stderr=True), limit)


def _index_archive(folder: Path) -> Path:
    # Imported here: it needs pyarrow and all of the extra `console`.
    try:
        from services.cli.sql_archive import index_archive
    except ModuleNotFoundError as error:
        raise OSError(f"{error}: {how_to_install('archive', 'console')}") from error
    return index_archive(folder)


def _table(found: Answer) -> Table:
    table = Table(*map(plain, found.columns))
    for row in found.rows:
        table.add_row(*("" if value is None else plain(value) for value in row))
    return table


def _print_csv(found: Answer) -> None:
    """Print values as they are; on a terminal, without what it would interpret."""
    rows: list[Sequence[Any]] = [found.columns, *found.rows]
    if sys.stdout.isatty():
        rows = [
            [escaped(value) if isinstance(value, str) else value for value in row] for row in rows
        ]
    csv.writer(sys.stdout).writerows(rows)


def _say(console: Console, limit: int) -> None:
    console.print(f"[yellow]only the first {limit} rows are printed[/yellow] (--limit)")
