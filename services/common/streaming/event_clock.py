"""The time of one partition: by our clock and by what its events say."""

from __future__ import annotations

from collections.abc import Callable

SKEW_MS = 60_000
"""How far the clocks of two machines may differ. An event that is further ahead, of our clock or of
its record's time, comes from a broken clock; brokers refuse records from further than an hour ahead
of their own.
"""

LOOK_EVERY_MS = 250
"""Between two looks through all that is open: one costs more than an input."""


class EventClock:
    """Our clock, moved ahead by event times: a deadline passes by whichever is later."""

    def __init__(self, now: Callable[[], int]) -> None:
        """`now`: our clock, Unix milliseconds."""
        self._our_time = now
        self._newest = 0

    def observe(self, event_time: int) -> None:
        """Move to an event's time, at most `SKEW_MS` ahead of our clock."""
        self._newest = max(self._newest, min(event_time, self._our_time() + SKEW_MS))

    @property
    def our_time(self) -> int:
        """Unix milliseconds, by our clock."""
        return self._our_time()

    @property
    def now(self) -> int:
        """The later of our time and the newest event time."""
        return max(self._newest, self._our_time())


class Interval:
    """Lets something happen at most once in `every_ms`, by our clock alone."""

    def __init__(self, every_ms: int, clock: EventClock) -> None:
        self._every_ms = every_ms
        self._clock = clock
        self._next = 0

    def restart_if_over(self) -> bool:
        """Return whether the interval is over; if so, the next one begins."""
        if self._clock.our_time < self._next:
            return False
        self._next = self._clock.our_time + self._every_ms
        return True


def bounded_by_record(event_time: int, logged_at: int | None) -> int:
    """Return an event's time, at most `SKEW_MS` after the time of its record, if that is known.

    A clock that was wrong for a moment must not keep anything open for years.
    """
    return event_time if logged_at is None else min(event_time, logged_at + SKEW_MS)
