"""What of the log cannot be used, by name, while the rest is: one bad record or group ends no
command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from fulgurite.errors import FulguriteError
from services.replay.groups import Group

T = TypeVar("T")

UNUSABLE = (
    FulguriteError,
    ArithmeticError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)
"""What reading a record or a group may raise because of what is in it."""


class LeftOut:
    """Takes groups and gives what is made of them; `lines` name what could not be used, and why."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def each(self, groups: Iterable[Group], make: Callable[[Group], Iterable[T]]) -> Iterator[T]:
        """What `make` gives for each group, all of it or nothing."""
        for group in groups:
            self.lines.extend(group.unreadable)
            try:
                made = list(make(group))
            except UNUSABLE as error:
                self.lines.append(f"group {group.group_id}: {type(error).__name__}: {error}")
                continue
            yield from made
