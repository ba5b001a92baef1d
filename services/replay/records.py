"""A record as it lies in the log or in an archive, undecoded: what is read again is decoded a group
at a time, so memory holds the bytes that were on the wire and not the events, deltas of one
another, that they become.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

import msgspec

from fulgurite.events import LlmCall
from fulgurite.topics import Topic


class Raw(msgspec.Struct, frozen=True, gc=False):
    """One record; the topic's name is without the deployment's prefix."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes
    value: bytes
    event_id: str
    """From the record's headers; empty if they do not say, or were not read."""
    event_type: str
    """As `event_id`."""


class Source(Protocol):
    """Where records come from; bounded by what was there when it was made."""

    def count(self, topics: Collection[Topic], since_ms: int | None = None) -> int:
        """Records there are to read, for a progress bar."""
        ...

    def read(
        self, topics: Collection[Topic], partition: int, since_ms: int | None = None
    ) -> Iterator[Raw]:
        """One partition of some topics, each topic in the order of its offsets, from a record time
        on.
        """
        ...

    def whole(self, call: LlmCall, held: dict[str, LlmCall]) -> LlmCall:
        """A call without a parent; `held` has whole calls by id. Raises BrokenDelta,
        LogUnavailable.
        """
        ...
