"""Writes and reads Parquet files through pyarrow, with types.

A file gets its name only when it is complete. Readers ignore what a killed process left.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from services.common.runtime.extras import how_to_install
from services.replay.errors import BadArchive, BadArgument

_ROWS = 512
"""Rows per row group: a few MiB of token ids."""


def arrow() -> Any:
    """Import pyarrow. Raises BadArgument if it is not installed."""
    try:
        return import_module("pyarrow")
    except ImportError as error:
        raise BadArgument(f"Parquet needs pyarrow: {how_to_install('archive')}") from error


class ParquetFolder:
    """Writes files of one schema into a folder, one or more for each part."""

    def __init__(self, folder: Path, schema: Any, most_open: int | None = None) -> None:
        """`schema`: an Arrow schema, or a function that makes it. `most_open`: files that may be
        unfinished; the oldest is then finished, and its part gets another file if it gets more
        rows. None: any number, so that each part has one file.
        """
        self._pyarrow = arrow()
        self._parquet = import_module("pyarrow.parquet")
        self._schema: Any = schema() if callable(schema) else schema
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[str, tuple[Any, Path, Path]] = {}
        self._held: dict[str, list[Mapping[str, Any]]] = {}
        self._most_open = most_open

    def write(self, part: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to a part: a path within the folder, without `.parquet`."""
        if not rows:
            return
        if part not in self._open:
            if len(self._open) == self._most_open:
                self._finish(next(iter(self._open)))
            # Several runs may write to one folder, and a run several files of a part.
            path = self._folder / f"{part}.{uuid.uuid4().hex[:8]}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f".{path.name}")
            self._open[part] = (
                self._parquet.ParquetWriter(unfinished, self._schema, compression="zstd"),
                unfinished,
                path,
            )
            self._held[part] = []
        self._held[part].extend(rows)
        if len(self._held[part]) >= _ROWS:
            self._flush(part)

    def close(self) -> None:
        """Finish every file."""
        for part in list(self._open):
            self._finish(part)

    def _finish(self, part: str) -> None:
        self._flush(part)
        writer, unfinished, path = self._open.pop(part)
        writer.close()
        unfinished.rename(path)

    def _flush(self, part: str) -> None:
        if self._held[part]:
            self._open[part][0].write_table(
                self._pyarrow.Table.from_pylist(self._held[part], schema=self._schema)
            )
            self._held[part] = []


def count_rows(path: Path) -> int:
    """Read the number of rows from a file's footer. Raises BadArchive."""
    arrow()
    try:
        return int(import_module("pyarrow.parquet").ParquetFile(path).metadata.num_rows)
    except (OSError, ValueError) as error:
        raise BadArchive(f"{path} cannot be read as Parquet: {error}") from error


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a file's rows. Raises BadArchive."""
    arrow()
    try:
        file = import_module("pyarrow.parquet").ParquetFile(path)
        batches = file.iter_batches(batch_size=_ROWS, columns=list(columns))
        for batch in batches:
            yield from cast("list[dict[str, Any]]", batch.to_pylist())
    except (OSError, ValueError, KeyError) as error:
        raise BadArchive(f"{path} cannot be read as an archive: {error}") from error
