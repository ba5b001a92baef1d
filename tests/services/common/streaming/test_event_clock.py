"""The time of a partition, and how often something happens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.streaming.event_clock import SKEW_MS, EventClock, Interval, bounded_by_record

TIMES = st.integers(0, 2**62)


class OurClock:
    """It stands where a test sets it."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@given(TIMES, st.lists(TIMES))
def test_the_newest_event_moves_time_but_a_broken_clock_hardly(now: int, times: list[int]) -> None:
    clock = EventClock(OurClock(now))
    for time in times:
        clock.observe(time)
    assert clock.our_time == now
    assert clock.now == max([now, *(min(time, now + SKEW_MS) for time in times)])


@given(st.lists(st.tuples(TIMES, TIMES)))
def test_event_time_never_goes_back(steps: list[tuple[int, int]]) -> None:
    ours = OurClock(0)
    clock = EventClock(ours)
    event_time = 0
    for now, time in steps:
        ours.now = now
        clock.observe(time)
        event_time = max(event_time, min(time, now + SKEW_MS))
        assert clock.now == max(now, event_time)
        ours.now = 0
        assert clock.now == event_time


def test_an_interval_begins_with_each_time_it_was_over() -> None:
    ours = OurClock(1_000_000)
    interval = Interval(250, EventClock(ours))
    assert interval.restart_if_over(), "nothing happened yet"
    assert not interval.restart_if_over()
    ours.now += 249
    assert not interval.restart_if_over()
    ours.now += 1
    assert interval.restart_if_over()
    ours.now += 249
    assert not interval.restart_if_over()


def test_event_time_does_not_shorten_an_interval() -> None:
    clock = EventClock(OurClock(1_000_000))
    interval = Interval(250, clock)
    assert interval.restart_if_over()
    clock.observe(1_000_000 + SKEW_MS)
    assert not interval.restart_if_over()


@given(TIMES, TIMES)
def test_an_event_is_hardly_younger_than_its_record(event_time: int, logged_at: int) -> None:
    assert bounded_by_record(event_time, None) == event_time
    assert bounded_by_record(event_time, logged_at) == min(event_time, logged_at + SKEW_MS)
