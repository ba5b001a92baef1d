"""What `--json` prints: one indented document on stdout, for programs."""

from __future__ import annotations

import msgspec


def print_json(found: object) -> None:
    """Anything that msgspec can encode."""
    print(msgspec.json.format(msgspec.json.encode(found)).decode())
