"""Events that could not be processed. Topic `dead.letters`."""

from __future__ import annotations

from fulgurite.events.base import Event


class DeadLetter(Event, frozen=True, kw_only=True):
    """An event that could not be processed. Topic `dead.letters`."""

    stage: str
    """Service and step that gave up."""
    error_type: str
    """Name of the error."""
    error: str
    """What was wrong."""
    topic: str
    """Topic of the event."""
    partition: int
    """Its partition."""
    offset: int
    """Its offset."""
    key: bytes | None = None
    """Its key."""
    value: bytes | None = None
    """Its bytes."""
    actions: tuple[str, ...] = ()
    """Actions lost with it, as far as they are known: `call_id#choice`."""
