"""What is held in memory of state that the log has too, and what is remembered of the rest."""

from __future__ import annotations

import math
from collections import OrderedDict
from enum import Enum
from typing import Generic, NamedTuple, Protocol, TypeVar

from services.common.streaming.event_clock import SKEW_MS


class Completeness(Enum):
    """Whether the log may hold more of a key than memory does."""

    complete = "complete"
    maybe_incomplete = "maybe incomplete"
    """It may have been evicted so long ago that nothing is remembered of it."""
    incomplete = "incomplete"
    """It was evicted: read it from the log again."""


class Note(Protocol):
    """What is remembered of a key that was evicted."""

    @property
    def at(self) -> int:
        """Unix milliseconds at or after which the key began: `LogCache.since` once the note is
        dropped too.
        """
        ...


class Limits(NamedTuple):
    """How much is held, and how much is remembered."""

    held_bytes: float
    held_ms: float
    notes: int
    notes_ms: float = math.inf


Key = TypeVar("Key")
Value = TypeVar("Value")
AnyNote = TypeVar("AnyNote", bound=Note)


class _Held(NamedTuple, Generic[Value, AnyNote]):
    value: Value
    note: AnyNote
    weight: int
    at: int


class LogCache(Generic[Key, Value, AnyNote]):
    """Complete values that nobody works on, by key. Those that are too old or too much are evicted;
    notes of them stay longer.

    A key is here with its value, or with a note only, or not at all. Who takes a value to work on
    it puts it back. Values and notes go in the order in which they came, so that looking for what
    is too old looks at nothing that stays.

    What differs between its users is in their notes: which time `Note.at` is (when the key began,
    or when its value was finished), and what else is worth remembering.
    """

    def __init__(self, limits: Limits, since: int) -> None:
        """`since`: Unix milliseconds; of keys that were evicted before it, nothing is known."""
        self._limits = limits
        self._held: OrderedDict[Key, _Held[Value, AnyNote]] = OrderedDict()
        self._bytes = 0
        self._notes: OrderedDict[Key, AnyNote] = OrderedDict()
        self.since = since
        """Every key that was evicted and began after this, give or take `SKEW_MS`, has a note."""

    def get(self, key: Key) -> Value | None:
        """Return a value that is held, to look at it."""
        held = self._held.get(key)
        return None if held is None else held.value

    def take(self, key: Key) -> Value | None:
        """Return a value that is held, to work on it: it is the caller's now."""
        held = self._held.pop(key, None)
        if held is None:
            return None
        self._bytes -= held.weight
        return held.value

    def put(self, key: Key, value: Value, note: AnyNote, *, weight: int, at: int) -> None:
        """Hold a complete value. `note` is what to remember once it is evicted, `weight` its bytes,
        `at` the time of which it is, Unix milliseconds.
        """
        self.take(key)
        self._notes.pop(key, None)
        self._held[key] = _Held(value, note, weight, at)
        self._bytes += weight

    def note(self, key: Key, note: AnyNote) -> None:
        """Remember a key that is not held: evicted, or known from the log only."""
        self.take(key)
        self._notes[key] = note
        self._notes.move_to_end(key)

    def note_of(self, key: Key) -> AnyNote | None:
        """Return what is remembered of a key that is not held."""
        return self._notes.get(key)

    def drop_note(self, key: Key) -> None:
        """A key was read from the log again: the caller has all of it."""
        self._notes.pop(key, None)

    def completeness(self, key: Key, began_at: int | None) -> Completeness:
        """Whether a key is held, or was never evicted. `began_at`: when it began, Unix
        milliseconds; None if nobody knows.
        """
        if key in self._notes:
            return Completeness.incomplete
        if key in self._held or (began_at is not None and began_at >= self.since + SKEW_MS):
            return Completeness.complete
        return Completeness.maybe_incomplete

    def evict(self, now: int) -> None:
        """Evict values, and drop notes, that are beyond the limits. `now`: Unix milliseconds."""
        while self._held:
            key, held = next(iter(self._held.items()))
            if self._bytes <= self._limits.held_bytes and held.at >= now - self._limits.held_ms:
                break
            self.note(key, held.note)
        while self._notes:
            note = next(iter(self._notes.values()))
            if len(self._notes) <= self._limits.notes and note.at >= now - self._limits.notes_ms:
                break
            self._notes.popitem(last=False)
            self.since = max(self.since, note.at)
