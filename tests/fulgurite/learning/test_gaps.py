"""Differences of two samples that are not paired."""

from __future__ import annotations

import random

import pytest

from fulgurite.learning.intervals import estimate_gap


def test_shares_have_agresti_and_caffos_bounds() -> None:
    found = estimate_gap([1.0] * 56 + [0.0] * 14, [1.0] * 48 + [0.0] * 32)
    # Table 1 of the paper has 56/70 and 48/80: 0.2, between 0.053 and 0.335.
    assert found.mean == pytest.approx(-0.2)
    assert (found.low, found.high) == (
        pytest.approx(-0.335, abs=2e-3),
        pytest.approx(-0.053, abs=2e-3),
    )


def test_equal_shares_have_a_width_and_stay_within_their_range() -> None:
    found = estimate_gap([0.0] * 300, [0.0] * 30)
    assert found.mean == 0.0
    assert found.low is not None
    assert -0.1 < found.low < 0.0
    assert found.high is not None
    assert 0.0 < found.high < 0.12
    worst = estimate_gap([0.0] * 30, [1.0] * 30)
    assert (worst.mean, worst.high) == (1.0, 1.0)


def test_other_values_have_welchs_bounds() -> None:
    found = estimate_gap([0.0, 2.0] * 50, [3.0, 4.0] * 20)
    # Variances 1.0101 and 0.2564: error 0.1285, 130 degrees of freedom, t = 1.978.
    assert found.mean == pytest.approx(2.5)
    assert found.low == pytest.approx(2.5 - 1.978 * 0.12847, abs=1e-3)
    assert found.count == 40


def test_equal_values_have_no_width() -> None:
    found = estimate_gap([0.5] * 40, [0.7] * 40)
    assert (found.low, found.high) == (found.mean, found.mean)


def test_a_smaller_error_gives_wider_bounds() -> None:
    samples = [0.1, 0.9, 0.4] * 20, [0.2, 0.8, 0.6] * 20
    narrow, wide = estimate_gap(*samples), estimate_gap(*samples, error=0.01)
    assert wide.low is not None
    assert narrow.low is not None
    assert wide.low < narrow.low


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_the_bounds_miss_the_difference_as_rarely_as_they_say(share: float) -> None:
    chance = random.Random(share)

    def misses() -> bool:
        many, few = ([float(chance.random() < share) for _ in range(size)] for size in (200, 40))
        found = estimate_gap(many, few)
        assert found.low is not None
        assert found.high is not None
        return not found.low <= 0.0 <= found.high

    assert sum(misses() for _ in range(1000)) < 75
