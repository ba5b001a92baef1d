"""Says how to install an extra. The package index has no `fulgurite`, so a checkout is named."""

from __future__ import annotations


def how_to_install(*extras: str) -> str:
    """The remedy of an error about a library that belongs to these extras."""
    return (
        "`make install` has it; elsewhere, from a checkout: "
        f"pip install '/path/to/fulgurite[{','.join(extras)}]'"
    )
