"""What commands print on stdout: one indented document for `--json`, and tables."""

from __future__ import annotations

import json

import msgspec
from rich.table import Table

from fulgurite.untrusted_json import encoded
from services.common.runtime.escaping import escaped_json
from services.common.runtime.terminal import make_console

_NO_TERMINAL = 250
"""Columns: a pipe or a file has no width for whose sake an id would be cut."""


def print_json(found: object) -> None:
    """Anything that msgspec can encode."""
    document = encoded(found)
    try:
        shown = msgspec.json.format(document).decode()
    except msgspec.DecodeError:
        shown = json.dumps(json.loads(document), indent=2)
    print(escaped_json(shown))


def print_table(table: Table) -> None:
    """Within the terminal, where there is one."""
    console = make_console(soft_wrap=False)
    if not console.is_terminal:
        console.width = max(console.width, _NO_TERMINAL)
    console.print(table)
