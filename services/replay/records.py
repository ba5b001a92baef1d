"""Defines an undecoded record of a topic or an archive, and a source of such records.

Records are decoded one group at a time. So memory holds compact bytes instead of events whose
deltas are expanded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

import msgspec

from fulgurite.events import LlmCall
from fulgurite.topics import Topic


class Raw(msgspec.Struct, frozen=True, gc=False):
    """One record. The topic's name is without the deployment's prefix."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes
    value: bytes
    event_id: str
    """From the record's headers; empty if it is missing or was not read."""
    event_type: str
    """As `event_id`."""


class Source(Protocol):
    """Provides the records that existed when it was made."""

    def count(self, topics: Collection[Topic], since_ms: int | None = None) -> int:
        """Count the records to read, for a progress bar."""
        ...

    def read(
        self, topics: Collection[Topic], partition: int, since_ms: int | None = None
    ) -> Iterator[Raw]:
        """Yield one partition of some topics, each topic in the order of its offsets.

        `since_ms`: records with this time or a later one.
        """
        ...

    def complete_call(self, call: LlmCall, held: dict[str, LlmCall]) -> LlmCall:
        """Expand a call that is a delta. `held`: expanded calls by id.

        Raises BrokenDelta, LogUnavailable.
        """
        ...
