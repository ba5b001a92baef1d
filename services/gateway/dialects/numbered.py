"""Parts of an answer that a stream numbers: content blocks, output items, tool calls. Numbers may
repeat or come in any order.
"""

from __future__ import annotations

from services.gateway.dialects.capture import Json


class Numbered:
    """Parts in the order of their numbers; parts of equal numbers keep the order in which they
    came.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[int, Json]] = []
        self._last: dict[int, Json] = {}

    def begin(self, number: int, part: Json) -> Json:
        """Add a part, also where another has its number; it may grow later. Returns it."""
        self._parts.append((number, part))
        self._last[number] = part
        return part

    def last(self, number: int) -> Json | None:
        """The last part that began with this number."""
        return self._last.get(number)

    def ordered(self) -> list[Json]:
        """All of them."""
        return [part for _, part in sorted(self._parts, key=lambda entry: entry[0])]
