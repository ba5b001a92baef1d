"""What commands print on stdout: one indented document for `--json`, and tables."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table

_NO_TERMINAL = 250
"""Columns: a pipe or a file has no width for whose sake an id would be cut."""


def print_json(found: object) -> None:
    """Anything that msgspec can encode."""
    print(msgspec.json.format(msgspec.json.encode(found)).decode())


def print_table(table: Table) -> None:
    """Within the terminal, where there is one."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _NO_TERMINAL)
    console.print(table)
