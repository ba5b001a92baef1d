"""Acknowledgements go out strictly in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.streams import AckOrder


@given(st.permutations(range(8)))
def test_an_input_is_acknowledged_once_everything_before_it_is_settled(order: list[int]) -> None:
    acknowledged: list[int] = []
    acks = AckOrder()
    settles = [acks.add(lambda offset=offset: acknowledged.append(offset)) for offset in range(8)]
    for count, offset in enumerate(order, 1):
        settles[offset]()
        done = set(order[:count])
        assert acknowledged == [known for known in range(8) if set(range(known + 1)) <= done]
    assert len(acks) == 0


def test_settling_twice_does_no_harm() -> None:
    acknowledged: list[int] = []
    acks = AckOrder()
    settle = acks.add(lambda: acknowledged.append(1))
    settle()
    settle()
    assert acknowledged == [1]
