"""A view of the console: an address, the question it answers, and the function that answers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.console.pages.blocks import Block
from services.console.pages.reading import Asked


@dataclass(frozen=True)
class View:
    """One page. A view without a key is reached through others, and not in the navigation."""

    path: str
    title: str
    question: str
    """What it answers, shown below the title."""
    content: Callable[[Asked], Sequence[Block]]
    """What it shows. It runs in a thread, reads the index and nothing else, and gives the same
    blocks for the same rows, address and time."""
    key: str | None = None
    """Letter that leads to it after `g`."""
    section: str = ""
    """Heading of the navigation that it stands under."""
    wide: bool = False
    """Whether it takes all of a wide screen."""
