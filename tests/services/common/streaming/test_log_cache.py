"""What stays in memory and what is remembered: a key of which something was evicted is never called
complete.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from services.common.streaming.event_clock import SKEW_MS
from services.common.streaming.log_cache import Completeness, Limits, LogCache

START = 1_000_000_000
COMPLETE, MAYBE, INCOMPLETE = (
    Completeness.complete,
    Completeness.maybe_incomplete,
    Completeness.incomplete,
)


class Closed(NamedTuple):
    """What is remembered of a key."""

    at: int


def cache(
    held_bytes: float = math.inf,
    held_ms: float = math.inf,
    notes: int = 1_000,
    notes_ms: float = math.inf,
) -> LogCache[str, object, Closed]:
    return LogCache(Limits(held_bytes, held_ms, notes, notes_ms), START)


def put(into: LogCache[str, object, Closed], key: str, at: int = START, weight: int = 10) -> None:
    into.put(key, key.upper(), Closed(at), weight=weight, at=at)


def held(of: LogCache[str, object, Closed], keys: str) -> str:
    """Those of the keys that are held."""
    return "".join(key for key in keys if of.get(key) is not None)


def test_a_value_is_held_until_it_is_taken() -> None:
    groups = cache()
    put(groups, "a")
    assert groups.completeness("a", None) is COMPLETE
    assert (groups.get("a"), groups.take("a"), groups.take("a")) == ("A", "A", None)
    assert (groups.get("a"), groups.note_of("a")) == (None, None)


def test_the_first_values_go_where_all_are_too_much() -> None:
    groups = cache(held_bytes=25)
    for key in "abcd":
        put(groups, key)
    groups.evict(START)
    assert held(groups, "abcd") == "cd"
    assert groups.note_of("a") == Closed(START)
    assert groups.completeness("b", START) is INCOMPLETE


def test_a_value_that_was_taken_weighs_nothing() -> None:
    groups = cache(held_bytes=10)
    put(groups, "a")
    put(groups, "b")
    groups.take("b")
    groups.evict(START)
    assert held(groups, "a") == "a"


def test_a_value_that_is_put_again_is_the_last_and_weighs_once() -> None:
    groups = cache(held_bytes=20)
    for key in "aba":
        put(groups, key)
    groups.evict(START)
    assert held(groups, "ab") == "ab"
    put(groups, "c")
    groups.evict(START)
    assert held(groups, "abc") == "ac"


def test_old_values_go() -> None:
    groups = cache(held_ms=100)
    put(groups, "a", START)
    put(groups, "b", START + 1)
    groups.evict(START + 101)
    assert held(groups, "ab") == "b"


def test_so_many_notes_stay_and_the_time_before_which_nothing_is_known_moves() -> None:
    groups = cache(held_bytes=0, notes=1)
    put(groups, "a", START + 5)
    put(groups, "b", START + 7)
    groups.evict(START)
    assert (groups.note_of("a"), groups.note_of("b")) == (None, Closed(START + 7))
    assert groups.since == START + 5
    assert groups.completeness("a", START + 5) is MAYBE
    assert groups.completeness("a", START + 5 + SKEW_MS) is COMPLETE, "it is another one"


def test_old_notes_go() -> None:
    groups = cache(notes_ms=100)
    groups.note("a", Closed(START))
    groups.note("b", Closed(START + 1))
    groups.evict(START + 101)
    assert (groups.note_of("a"), groups.note_of("b")) == (None, Closed(START + 1))
    assert groups.since == START


def test_the_time_before_which_nothing_is_known_never_goes_back() -> None:
    groups = cache(notes=0)
    groups.note("a", Closed(0))
    groups.evict(START)
    assert groups.since == START


def test_a_key_is_complete_again_once_it_was_read_from_the_log() -> None:
    groups = cache()
    groups.note("a", Closed(START))
    assert groups.completeness("a", START + SKEW_MS) is INCOMPLETE
    groups.drop_note("a")
    groups.drop_note("a")
    assert groups.completeness("a", START + SKEW_MS) is COMPLETE


def test_a_key_of_unknown_time_that_is_not_held_may_have_been_evicted() -> None:
    assert cache().completeness("a", None) is MAYBE
    assert cache().completeness("a", START + SKEW_MS - 1) is MAYBE
    assert cache().completeness("a", START + SKEW_MS) is COMPLETE


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "take", "note", "read again", "evict"]),
        st.sampled_from("abcdef"),
        st.integers(0, 200),
        st.integers(-SKEW_MS + 1, 300_000),
        st.integers(0, 30),
    ),
    max_size=60,
)
LIMITS = st.builds(
    Limits,
    held_bytes=st.integers(0, 60),
    held_ms=st.integers(0, 500_000),
    notes=st.integers(0, 4),
    notes_ms=st.integers(0, 500_000) | st.just(math.inf),
)


@given(LIMITS, STEPS, st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 600_000)))
def test_no_key_of_which_something_was_evicted_is_called_complete(
    limits: Limits, steps: list[tuple[str, str, int, int, int]], begins: dict[str, int]
) -> None:
    groups: LogCache[str, int, Closed] = LogCache(limits, START)
    now = START
    values: dict[str, int] = {}
    """What was put, and neither taken nor noted since."""
    evicted: set[str] = set()
    """Keys of which the caller and the cache together lack something."""
    for number, (what, key, passed, later, weight) in enumerate(steps):
        now += passed
        began_at = START + begins.get(key, 0)
        note = Closed(began_at + later)
        if what == "put" and key not in evicted:
            values[key] = number
            groups.put(key, number, note, weight=weight, at=now)
        elif what == "take":
            value = groups.take(key)
            assert value == (None if key in evicted else values.pop(key, None))
        elif what == "note":
            values.pop(key, None)
            evicted.add(key)
            groups.note(key, note)
        elif what == "read again":
            if groups.note_of(key) is not None:
                evicted.discard(key)
            groups.drop_note(key)
        else:
            groups.evict(now)
            gone = {key for key in values if groups.get(key) is None}
            evicted |= gone
            for lost in gone:
                del values[lost]
        assert {one for one in "abcdef" if groups.get(one) is not None} == values.keys()
        for one in evicted:
            known = groups.completeness(one, START + begins.get(one, 0))
            assert known is (MAYBE if groups.note_of(one) is None else INCOMPLETE)
            assert groups.completeness(one, None) is known
        for one in values:
            assert groups.completeness(one, None) is COMPLETE
    groups.evict(now)
    assert sum(groups.note_of(key) is not None for key in "abcdef") <= limits.notes
