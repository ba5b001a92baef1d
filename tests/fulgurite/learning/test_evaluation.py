"""Paired comparisons on held-out tasks."""

from __future__ import annotations

import itertools
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.learning.evaluation import adjusted, compare_on_tasks, shortcoming, sign_flip_p

rewards = st.dictionaries(
    st.sampled_from("abcdefgh"), st.lists(st.floats(-10, 10), max_size=3), max_size=8
)


def tasks(values: list[float]) -> dict[str, list[float]]:
    return {str(number): [value] for number, value in enumerate(values)}


def test_a_task_counts_once_and_only_if_both_have_it() -> None:
    found = compare_on_tasks(
        {"easy": [1.0, 1.0], "hard": [0.0, 0.5], "old": [0.0], "unscored": [1.0]},
        {"easy": [1.0], "hard": [1.0, 0.5, 1.0, 0.5], "new": [1.0], "unscored": []},
    )
    assert found is not None
    assert (found.estimate.mean, found.estimate.count) == (0.25, 2)
    assert (found.better, found.worse) == (1, 0)


def test_versions_without_a_common_task_are_not_compared() -> None:
    assert compare_on_tasks({"a": [1.0]}, {"b": [1.0]}) is None


@given(rewards, rewards)
def test_the_other_way_round_is_the_negative(
    one: dict[str, list[float]], other: dict[str, list[float]]
) -> None:
    forth, back = compare_on_tasks(one, other), compare_on_tasks(other, one)
    if forth is None or back is None:
        assert forth is back
        return
    assert forth.estimate.mean == pytest.approx(-back.estimate.mean)
    assert (forth.better, forth.worse) == (back.worse, back.better)
    assert forth.p == pytest.approx(back.p)
    assert 0 < forth.p <= 1


def test_the_difficulty_of_tasks_drops_out() -> None:
    chance = np.random.default_rng(1)
    hard = chance.normal(0, 10, 300)
    gained = chance.normal(0.2, 0.5, 300)
    found = compare_on_tasks(tasks(list(hard)), tasks(list(hard + gained)))
    assert found is not None
    assert found.estimate.low is not None
    assert found.estimate.low > 0.1
    assert found.p < 0.001


def test_five_of_five_is_no_more_than_chance_in_sixteen() -> None:
    assert sign_flip_p([0.1, 0.2, 0.3, 0.4, 0.5]) == 2 / 32
    assert sign_flip_p([1.0] * 5) == 2 / 32
    assert sign_flip_p([0.0, 0.0]) == 1.0


@given(st.lists(st.sampled_from([-1.0, 0.5, 1.0]), min_size=1, max_size=6))
def test_few_differences_are_counted_out(values: list[float]) -> None:
    patterns = list(itertools.product((-1, 1), repeat=len(values)))
    sums = [abs(sum(s * v for s, v in zip(p, values, strict=True))) for p in patterns]
    expected = fmean(total >= abs(sum(values)) for total in sums)
    assert sign_flip_p(values) == pytest.approx(expected)


def test_many_differences_are_drawn_and_come_near_the_exact_value() -> None:
    """Of 13 equal differences two patterns in 8192 are as extreme."""
    assert sign_flip_p([1.0] * 13) == pytest.approx(2 / 8192, abs=5e-4)
    mixed = [1.0] * 9 + [-1.0] * 5
    assert sign_flip_p(mixed) == pytest.approx(0.4240, abs=0.02)


def test_equal_versions_are_called_different_as_often_as_the_level_says() -> None:
    chance = np.random.default_rng(2)
    found = [sign_flip_p(list(chance.normal(0, 1, 20))) for _ in range(200)]
    assert fmean(p < 0.1 for p in found) == pytest.approx(0.1, abs=0.06)


@pytest.mark.parametrize(
    ("gains", "why"),
    [
        ([0.0, 0.1] * 100, None),
        ([0.0, -0.01] * 100, None),
        ([0.0, 0.1] * 99, "198 tasks in common, fewer than 200"),
        ([0.0] * 200, "no bounds"),
        ([-1.0, 0.9] * 100, "the lower bound"),
    ],
)
def test_a_version_is_promoted_if_it_is_not_worse_by_the_margin(
    gains: list[float], why: str | None
) -> None:
    found = shortcoming(compare_on_tasks(tasks([0.0] * len(gains)), tasks(gains)))
    assert found == why if why is None else why in str(found)


def test_no_common_task_promotes_nothing() -> None:
    assert shortcoming(None) == "the two have no task in common"


def test_several_comparisons_are_held_to_a_stricter_level() -> None:
    assert adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted([0.5, 0.9]) == [1.0, 1.0]
    assert adjusted([]) == []
