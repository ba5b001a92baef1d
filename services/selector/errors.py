"""The selector's errors.

SelectorError
└── Superseded   another selector has claimed an alias
"""

from __future__ import annotations


class SelectorError(Exception):
    """Base of the tree."""


class Superseded(SelectorError):
    """Another selector has claimed an alias after this one, and this one stops."""

    def __init__(self, alias: str, epoch: int, holder: str) -> None:
        super().__init__(
            f"The selector {holder} holds epoch {epoch} of alias {alias!r} (selection.decisions). "
            "This one stops: run one selector per alias."
        )
