"""Means and their 95% intervals."""

from __future__ import annotations

import pytest

from services.runner.intervals import estimate


def test_wilson_for_zeros_and_ones() -> None:
    found = estimate([[1.0]] * 80 + [[0.0]] * 20)
    assert found is not None
    assert (found.mean, found.count) == (0.8, 100)
    assert (found.low, found.high) == (pytest.approx(0.7112, abs=1e-4), pytest.approx(0.8666, abs=1e-4))


def test_all_alike_still_has_a_width() -> None:
    found = estimate([[1.0]] * 10)
    assert found is not None
    assert found.low == pytest.approx(0.7225, abs=1e-4)
    assert found.high == pytest.approx(1.0)


def test_groups_count_once() -> None:
    """Two tasks of six equal rollouts each are two observations, not twelve."""
    found = estimate([[1.0] * 6, [0.0] * 6])
    assert found is not None
    assert found.mean == 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5, abs=1e-3)


def test_real_values_use_the_normal_interval() -> None:
    found = estimate([[0.1], [0.2], [0.3]])
    assert found is not None
    assert (found.mean, found.high) == (pytest.approx(0.2), pytest.approx(0.2 + 1.96 * 0.1 / 3**0.5, abs=1e-4))


def test_nothing_to_estimate() -> None:
    assert estimate([]) is None
    assert estimate([[]]) is None
