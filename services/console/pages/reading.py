"""What a view is given: rows of the index, the address that was asked for, and the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fulgurite.avro.codec import Codec
from services.console.index.reader import IndexReader
from services.console.pages.address import Address
from services.console.pages.tokenizer import Tokenizer, TokenNumbers

Row = Mapping[str, Any]
"""A row by the names of its columns."""


_REVISION = "SELECT sum(next_offset + end_offset)::BIGINT AS n FROM positions"


class Index(Protocol):
    """The index, as the pages use it. Every method may be called from any thread."""

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """The rows of a statement with `?` or `$1` for parameters."""
        ...

    def revision(self) -> int:
        """A number that changes when something was added. Asking is cheap."""
        ...


class LiveIndex:
    """The index that this process keeps up to date."""

    def __init__(self, reader: IndexReader) -> None:
        self._reader = reader

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """The rows of a statement."""
        return self._reader.rows(sql, parameters)

    def revision(self) -> int:
        """How many records of the log were read or are gone, and how many are known to be there."""
        (row,) = self._reader.rows(_REVISION)
        return row["n"] or 0


@dataclass(frozen=True)
class Asked:
    """What a page is made from."""

    index: Index
    address: Address
    now_ms: int
    """Unix milliseconds."""
    codec: Codec = field(default_factory=Codec)
    """Reads the records that the index keeps as they were."""
    tokenizer: Tokenizer = field(default_factory=TokenNumbers)
    """Knows the text of a token."""

    def rows(self, sql: str, *parameters: object) -> list[dict[str, Any]]:
        """The rows of a statement with `?` or `$1` for parameters."""
        return self.index.rows(sql, parameters)

    def row(self, sql: str, *parameters: object) -> dict[str, Any]:
        """The first row of a statement; empty if it has none."""
        rows = self.rows(sql, *parameters)
        return rows[0] if rows else {}
