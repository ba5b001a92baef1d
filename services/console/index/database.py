"""Opens the index's DuckDB file.

DuckDB lets one process write a file, or several read it. So the console is the only process that
opens it while it runs, and answers the queries of others (`services.console.index.query_server`).
Within a process all connections to a file share one database, which must be opened with one set of
settings: `CONFIG`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from services.common.runtime.extras import how_to_install
from services.console.index.errors import NoIndex

LAYOUT = 4
"""Version of the tables. A file of another version is deleted and built again from the log."""

_CHECKPOINT = "128MB"
"""How much is written ahead until it is moved into the tables. With DuckDB's 16 MB the last rows of
every table were compressed again at each second transaction of a large log: an eighth of the time
of writing it, and a file of 1.8 times the size.
"""

CONFIG = {
    # A query cannot read or write files, load extensions, or see variables of this program.
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}


def duckdb() -> Any:
    """Import DuckDB. Raises NoIndex if it is not installed."""
    try:
        return import_module("duckdb")
    except ImportError as error:
        raise NoIndex(f"the index needs DuckDB: {how_to_install('console')}") from error


def connect(path: Path, *, read_only: bool = False) -> Any:
    """Open the file. Raises duckdb.IOException if another process has it open, and
    duckdb.ConnectionException if this one has, for writing.
    """
    connection = duckdb().connect(str(path), read_only=read_only, config=CONFIG)
    # Times of the index are UTC, so `now()` must be. All connections to the file share the setting,
    # and `bound` forbids to change it, so only the first one sets it. CONFIG cannot have it: DuckDB
    # reads that before it knows time zones.
    if connection.execute("SELECT current_setting('TimeZone')").fetchone() != ("UTC",):
        connection.execute("SET GLOBAL TimeZone = 'UTC'")
    return connection


def bound(connection: Any, memory: str, threads: int) -> None:
    """Limit what all queries of this process on the file may use, and forbid other settings."""
    connection.execute(f"SET memory_limit = '{memory}'")
    connection.execute(f"SET threads = {threads}")
    connection.execute(f"SET checkpoint_threshold = '{_CHECKPOINT}'")
    connection.execute("SET lock_configuration = true")


def delete_index(path: Path) -> None:
    """Delete the file and what was written ahead of it, which a new file would not fit."""
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.wal").unlink(missing_ok=True)


def is_locked(error: Exception) -> bool:
    """Whether a file could not be opened because another process has it open."""
    return "Could not set lock on file" in str(error)


@cache
def read_definitions(name: str) -> str:
    """Read `tables.sql`, `views.sql` or `rollouts.sql`."""
    return files("services.console.index").joinpath(name).read_text(encoding="utf-8")
