"""Prints JSON documents and tables on stdout."""

from __future__ import annotations

import json

import msgspec
from rich.table import Table

from fulgurite.untrusted_json import encoded
from services.common.runtime.escaping import escaped_json
from services.common.runtime.terminal import make_console

_NO_TERMINAL = 250
"""Width in columns for a pipe or a file, wide enough that no id is cut."""


def print_json(found: object) -> None:
    """Print anything that msgspec can encode, as an indented JSON document."""
    document = encoded(found)
    try:
        shown = msgspec.json.format(document).decode()
    except msgspec.DecodeError:
        shown = json.dumps(json.loads(document), indent=2)
    print(escaped_json(shown))


def print_table(table: Table) -> None:
    """Print a table, within the width of the terminal if there is one."""
    console = make_console(soft_wrap=False)
    if not console.is_terminal:
        console.width = max(console.width, _NO_TERMINAL)
    console.print(table)
