"""Each key in turn, the calls of one key in order, and nobody keeps others out by being many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.upstream.fair_queue import FairQueue


def drained(queue: FairQueue[str]) -> list[str]:
    found: list[str] = []
    while (call := queue.pop()) is not None:
        found.append(call)
    return found


def filled(*calls: str, limit: int = 100) -> FairQueue[str]:
    """`a1` is the first call of key `a`."""
    queue: FairQueue[str] = FairQueue(limit)
    for call in calls:
        queue.put(call[0], call)
    return queue


def test_keys_take_turns() -> None:
    assert drained(filled("a1", "a2", "a3", "b1", "c1", "b2")) == [
        "a1",
        "b1",
        "c1",
        "a2",
        "b2",
        "a3",
    ]


def test_a_late_key_is_next_but_one() -> None:
    queue = filled(*(f"a{n}" for n in range(50)))
    assert queue.pop() == "a0"
    queue.put("b", "b0")
    assert [queue.pop(), queue.pop()] == ["a1", "b0"]


def test_who_leaves_is_not_called() -> None:
    queue = filled("a1", "a2", "b1")
    queue.leave("a", "a1")
    queue.leave("b", "b1")
    queue.leave("c", "c1")
    assert (len(queue), drained(queue)) == (1, ["a2"])


def test_a_full_queue_makes_room_at_the_cost_of_the_greediest() -> None:
    queue = filled("a1", "a2", "a3", "b1", limit=4)
    assert queue.put("c", "c1") == "a3"
    assert queue.put("a", "a4") == "a4"
    assert queue.put("b", "b2") == "b2"
    assert drained(queue) == ["a1", "b1", "c1", "a2"]


def test_without_a_queue_everybody_is_refused() -> None:
    assert FairQueue[str](0).put("a", "a1") == "a1"


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans())), st.integers(0, 8))
def test_nothing_is_lost_or_called_twice(steps: list[tuple[str, bool]], limit: int) -> None:
    queue: FairQueue[str] = FairQueue(limit)
    inside: set[str] = set()
    for number, (key, arrives) in enumerate(steps):
        if arrives:
            out = queue.put(key, f"{key}{number}")
            inside.add(f"{key}{number}")
            inside -= {out} if out else set()
        elif (taken := queue.pop()) is not None:
            inside.remove(taken)
        assert len(queue) == len(inside) <= limit
    calls = drained(queue)
    assert sorted(calls) == sorted(inside)
    for key in "abcd":
        mine = [int(call[1:]) for call in calls if call[0] == key]
        assert mine == sorted(mine)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 20), min_size=1))
def test_no_key_waits_for_more_than_one_call_of_each_other(calls: dict[str, int]) -> None:
    queue = filled(*(f"{key}{n}" for key, count in calls.items() for n in range(count)), limit=1000)
    order = [call[0] for call in drained(queue)]
    for key in calls:
        assert order.index(key) < len(calls)
