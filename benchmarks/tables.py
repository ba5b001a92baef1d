"""Results as Markdown, with how busy the machine was before."""

from __future__ import annotations

import os
from typing import Any

_LOAD_BEFORE = os.getloadavg()[0]


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print Markdown."""
    print(f"\n{title} (load average before: {_LOAD_BEFORE:.1f})\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print(
            "| "
            + " | ".join(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row)
            + " |",
            flush=True,
        )
