"""What producers and consumers raise when Kafka fails them."""

from __future__ import annotations


class LogUnavailable(Exception):
    """Kafka did not acknowledge an event in time, refused it, or did not answer a read."""


class EventTooLarge(LogUnavailable):
    """An event is larger than a message may be. Sending it again does not help."""
