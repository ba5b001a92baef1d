"""Leaves out records and groups that cannot be used, so that one of them does not end a command."""

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
"""Errors that the contents of a record or a group may cause."""


class LeftOut:
    """Processes groups; `lines` name the records and groups that could not be used, and why."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def each(self, groups: Iterable[Group], make: Callable[[Group], Iterable[T]]) -> Iterator[T]:
        """Yield the results of `make` for each group; none of a group for which it fails."""
        for group in groups:
            self.lines.extend(group.unreadable)
            try:
                made = list(make(group))
            except UNUSABLE as error:
                self.lines.append(f"group {group.group_id}: {type(error).__name__}: {error}")
                continue
            yield from made
