"""Asks the process that has the index open, on a Unix socket beside the file.

DuckDB locks the file, so a reader in another process cannot open it while the console runs. A query
is one MessagePack document, and so is its answer.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import time
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from services.console.index.answers import Answer, Query
from services.console.index.errors import BadQuery, NoIndex

LONGEST_QUERY = 1024**2
"""Bytes of a query with its parameters."""
_LONGEST_PATH = 100
"""Bytes. The longest path of a socket is 103 bytes on macOS, 107 on Linux."""
_GRACE_S = 5.0
"""How much longer than the query's own time limit an answer is waited for."""

_STARTING_S = 3.0
"""How long a process that has the file open may take until it listens."""
_RETRY_S = 0.05


class Reply(msgspec.Struct, frozen=True):
    """What it gets: an answer, or an error."""

    answer: Answer | None = None
    bad_query: str | None = None
    error: str | None = None


def socket_path(index: Path) -> Path:
    """Where the console answers for an index: beside it, or in the folder for temporary files."""
    path = index.absolute().with_name(f"{index.name}.sock")
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"fulgurite-{name}.sock"


def ask_writer(index: Path, query: Query, timeout_s: float) -> Answer:
    """Ask the process that has the index open. Raises BadQuery, NoIndex."""
    path = socket_path(index)
    asked = msgspec.msgpack.encode(query, enc_hook=str)
    if len(asked) > LONGEST_QUERY:
        raise BadQuery(f"a query has at most {LONGEST_QUERY:,} bytes, this one {len(asked):,}")
    try:
        with _connect(index, path) as connection:
            connection.settimeout(timeout_s + _GRACE_S)
            connection.sendall(asked)
            connection.shutdown(socket.SHUT_WR)
            data = b"".join(iter(lambda: connection.recv(65_536), b""))
        reply = msgspec.msgpack.decode(data, type=Reply)
    except (OSError, msgspec.DecodeError) as error:
        raise NoIndex(
            f"{index} is open in another process, which does not answer at {path} ({error}). "
            "If it is the console, restart it; else end that process."
        ) from error
    if reply.bad_query is not None:
        raise BadQuery(reply.bad_query)
    if reply.answer is None:
        raise NoIndex(reply.error or f"{path} answered nothing")
    return _typed(reply.answer)


def _connect(index: Path, path: Path) -> socket.socket:
    """Connect to the process at a socket; a console that starts opens the file before it listens.
    Raises NoIndex, OSError.
    """
    deadline = time.monotonic() + _STARTING_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if path.stat().st_uid != index.stat().st_uid:
                raise NoIndex(f"{path} is not of the owner of {index}: remove it")
            connection.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)
        except BaseException:
            connection.close()
            raise
        else:
            return connection


def _typed(answer: Answer) -> Answer:
    """Convert texts back into the times and decimals that they were."""
    conversions = [_conversion(kind) for kind in answer.types]
    rows = [
        tuple(
            value if value is None or convert is None else convert(value)
            for value, convert in zip(row, conversions, strict=True)
        )
        for row in answer.rows
    ]
    return msgspec.structs.replace(answer, rows=rows)


def _conversion(kind: str) -> Any:
    if kind == "TIMESTAMP":
        return datetime.fromisoformat
    if kind == "DATE":
        return date.fromisoformat
    return Decimal if kind.startswith("DECIMAL") else None
