"""Means and their 95% intervals, which never claim to be certain."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fulgurite.learning.intervals import estimate, estimate_difference

values = st.floats(-100, 100) | st.sampled_from([0.0, 1.0])


def test_wilson_for_zeros_and_ones() -> None:
    found = estimate([[1.0]] * 80 + [[0.0]] * 20)
    assert found is not None
    assert (found.mean, found.count) == (0.8, 100)
    assert (found.low, found.high) == (
        pytest.approx(0.7112, abs=1e-4),
        pytest.approx(0.8666, abs=1e-4),
    )


def test_an_estimate_is_shown_with_its_bounds() -> None:
    assert str(estimate([[1.0]] * 80 + [[0.0]] * 20)) == "0.800 [0.711, 0.867] (n = 100)"


def test_all_alike_still_has_a_width() -> None:
    found = estimate([[1.0]] * 10)
    assert found is not None
    assert found.low == pytest.approx(0.7225, abs=1e-4)
    assert found.high == pytest.approx(1.0)


def test_groups_of_equal_zeros_and_ones_count_once_each() -> None:
    found = estimate([[0.0] * 6] * 4)
    assert found is not None
    assert (found.low, found.count) == (0.0, 24)
    assert found.high == pytest.approx(estimate([[0.0]] * 4).high)  # pyright: ignore[reportOptionalMemberAccess]


def test_groups_count_once() -> None:
    """Two tasks of six equal rollouts each are two observations, not twelve."""
    found = estimate([[1.0] * 6, [0.0] * 6])
    assert found is not None
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_real_values_use_students_t() -> None:
    found = estimate([[0.1], [0.2], [0.3]])
    assert found is not None
    assert (found.mean, found.high) == (
        pytest.approx(0.2),
        pytest.approx(0.2 + 4.303 * 0.1 / 3**0.5, abs=1e-4),
    )


@pytest.mark.parametrize(
    ("count", "error", "quantile"),
    [
        (2, 0.01, 63.657), (3, 0.01, 9.925), (4, 0.001, 12.924), (11, 0.01, 3.169),
        (31, 0.002, 3.385), (41, 0.01, 2.704), (11, 0.0500001, 2.228), (6, 0.0500001, 2.571),
        (11, 0.05, 2.228),
    ],
)  # fmt: skip
def test_an_interval_is_as_wide_as_the_error_that_is_asked_for(
    count: int, error: float, quantile: float
) -> None:
    """Quantiles from tables of Student's t, for one degree of freedom less than values."""
    values = [float(number) for number in range(count)]
    found = estimate_difference(values, error)
    mean = sum(values) / count
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
    assert found.high == pytest.approx(mean + quantile * spread, rel=1e-3)


def test_many_values_come_near_the_normal_interval() -> None:
    found = estimate([[0.0], [0.5], [1.0]] * 14)
    assert found is not None
    spread = (42 / 41 * (1 / 6)) ** 0.5
    assert found.high == pytest.approx(0.5 + 2.0195 * spread / 42**0.5, abs=1e-4)


@pytest.mark.parametrize("groups", [[[0.5]], [[0.5] * 8], [[0.5]] * 8, [[0.2, 0.8]]])
def test_values_that_cannot_tell_have_no_interval(groups: list[list[float]]) -> None:
    found = estimate(groups)
    assert found is not None
    assert (found.mean, found.low, found.high) == (0.5, None, None)
    assert "no" not in str(found).split()
    assert "too few or too equal" in str(found)


@given(st.lists(st.lists(values, min_size=1, max_size=4), min_size=1, max_size=40))
@example([[1e-187], [2e-187]])
@example([[0.1]] * 39 + [[math.nextafter(0.1, 1)]])
def test_no_interval_is_a_point(groups: list[list[float]]) -> None:
    found = estimate(groups)
    assert found is not None
    if found.low is not None and found.high is not None:
        assert found.low < found.high
        assert found.low - 1e-9 <= found.mean <= found.high + 1e-9 or any(
            len(group) > 1 for group in groups
        )


def test_nothing_to_estimate() -> None:
    assert estimate([]) is None
    assert estimate([[]]) is None
