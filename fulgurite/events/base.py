"""Bases of all events and of the values inside them."""

from __future__ import annotations

import msgspec


class EventStruct(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of every value of the contract. Frozen values cannot refer to themselves: the collector
    of cycles need not look at them.
    """


class Event(EventStruct, frozen=True, kw_only=True):
    """Base of every value that is a message of a topic."""

    event_id: str
    """Unique id of this event; a duplicate has the same one."""
    event_time: int
    """When it happened, Unix milliseconds."""
