"""The contextual bandit: chances that follow what variants earned."""

from __future__ import annotations

import random

import pytest

from fulgurite.selection.deciding import ANYWHERE, Observation
from services.selector.bandit import chances


def observed(mean: float, count: int, cell: str = "", weight: float = 1.0) -> list[Observation]:
    chance = random.Random(count)
    return [
        Observation(cell=cell, value=float(chance.random() < mean), weight=weight)
        for _ in range(count)
    ]


def test_the_variant_that_earns_more_is_the_best_with_more_chance_the_more_it_is_seen() -> None:
    few = chances({"a": observed(0.7, 20), "b": observed(0.5, 20)}, [ANYWHERE])[ANYWHERE]
    many = chances({"a": observed(0.7, 500), "b": observed(0.5, 500)}, [ANYWHERE])[ANYWHERE]
    assert 0.5 < few["a"] < many["a"]
    assert many["a"] > 0.98
    assert sum(many.values()) == pytest.approx(1)


def test_the_same_observations_give_the_same_chances() -> None:
    given = {"a": observed(0.6, 50), "b": observed(0.5, 50)}
    assert chances(given, [ANYWHERE]) == chances(given, [ANYWHERE])


def test_a_context_has_chances_of_its_own_and_few_episodes_stay_near_the_mean() -> None:
    a = observed(0.9, 200, "/short") + observed(0.1, 200, "/long") + observed(0.0, 2, "/huge")
    b = observed(0.5, 200, "/short") + observed(0.5, 200, "/long") + observed(1.0, 2, "/huge")
    found = chances({"a": a, "b": b}, [ANYWHERE, "/short", "/long"])
    assert found["/short"]["a"] > 0.98
    assert found["/long"]["b"] > 0.98


def test_equal_values_are_no_certainty() -> None:
    same = [Observation(cell="", value=1.0, weight=1.0)] * 30
    found = chances({"a": same, "b": same}, [ANYWHERE])[ANYWHERE]
    assert 0.4 < found["a"] < 0.6


def test_old_observations_count_less() -> None:
    changed = observed(1.0, 100, weight=0.01) + observed(0.0, 100)
    found = chances({"a": changed, "b": observed(0.5, 100)}, [ANYWHERE])[ANYWHERE]
    assert found["b"] > 0.98
