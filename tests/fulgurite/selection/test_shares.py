"""Shares: floors, and the proportions of a comparison."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.selection.shares import raise_to_floors, tracking_shares


@pytest.mark.parametrize(
    ("wanted", "floors", "shares"),
    [
        ({"a": 0.9, "b": 0.1}, {"a": 0.05, "b": 0.05}, {"a": 0.9, "b": 0.1}),
        ({"a": 1.0, "b": 0.0}, {"a": 0.05, "b": 0.05}, {"a": 0.95, "b": 0.05}),
        (
            {"a": 0.9, "b": 0.06, "c": 0.04},
            {"a": 0.1, "b": 0.1, "c": 0.05},
            {"a": 0.85, "b": 0.1, "c": 0.05},
        ),
        ({"a": 0.0, "b": 0.5}, {"a": 0.01, "b": 0.05}, {"a": 0.01, "b": 0.99}),
        ({"a": 0.6, "b": 0.4}, {"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}),
        ({"a": 0.0, "b": 0.0}, {"a": 0.1, "b": 0.1}, {"a": 0.5, "b": 0.5}),
    ],
)
def test_shares_are_raised_to_their_floors(
    wanted: dict[str, float], floors: dict[str, float], shares: dict[str, float]
) -> None:
    assert raise_to_floors(wanted, floors) == pytest.approx(shares)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.001, 0.16))
def test_every_share_reaches_its_floor_and_they_add_up_to_one(
    wanted: list[float], floor: float
) -> None:
    names = dict(enumerate(wanted))
    shares = raise_to_floors(
        {str(name): share for name, share in names.items()},
        {str(name): floor for name in names},
    )
    assert sum(shares.values()) == pytest.approx(1, abs=0.001)
    assert min(shares.values()) >= floor - 1e-4


def test_two_variants_are_compared_with_equal_shares() -> None:
    assert tracking_shares({"a": 0.2, "b": 0.6}) == pytest.approx({"a": 0.5, "b": 0.5})


def test_a_near_rival_gets_more_than_a_far_one() -> None:
    found = tracking_shares({"best": 0.9, "near": 0.8, "far": 0.1})
    assert found["best"] > found["near"] > 10 * found["far"] > 0
    assert sum(found.values()) == pytest.approx(1)


def test_variants_of_equal_means_share_what_there_is() -> None:
    assert tracking_shares({"a": 0.5, "b": 0.5, "c": 0.1}) == {"a": 0.5, "b": 0.5, "c": 0.0}
