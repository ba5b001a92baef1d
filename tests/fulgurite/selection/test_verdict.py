"""Differences of variants whose shares changed while they were measured."""

from __future__ import annotations

import random

import pytest

from fulgurite.selection.logged import LoggedEpisode
from fulgurite.selection.verdict import compare_variants, half_width


def episode(number: int, variant: str | None, propensity: float | None) -> LoggedEpisode:
    return LoggedEpisode(
        group_id=f"g{number}",
        variant=variant,
        propensity=propensity,
        reward=0.0,
        price=None,
        seconds=1.0,
        cell="",
    )


def stream(success: dict[str, float], count: int) -> tuple[list[LoggedEpisode], list[float]]:
    """Shares that move to the first variant."""
    chance = random.Random(7)
    episodes: list[LoggedEpisode] = []
    values: list[float] = []
    names = list(success)
    for number in range(count):
        first = 0.5 + 0.3 * number / count
        name = names[0] if chance.random() < first else names[1]
        episodes.append(episode(number, name, first if name == names[0] else 1 - first))
        values.append(float(chance.random() < success[name]))
    return episodes, values


def test_the_best_is_compared_with_the_others_whatever_their_shares_were() -> None:
    episodes, values = stream({"a": 0.8, "b": 0.5}, 1_000)
    (found,) = compare_variants(episodes, values, ["a", "b"], 0.95)
    assert (found.better, found.worse, found.groups) == ("a", "b", 1_000)
    assert 0 < found.low < 0.3 < found.high < 0.6
    assert found.mean == pytest.approx(0.3, abs=0.1)


def test_rollouts_of_one_group_count_once() -> None:
    episodes, values = stream({"a": 0.8, "b": 0.5}, 200)
    pairs = [
        episode(number // 2, one.variant, one.propensity) for number, one in enumerate(episodes)
    ]
    (found,) = compare_variants(pairs, values, ["a", "b"], 0.95)
    assert found.groups == 100


@pytest.mark.parametrize(
    ("variants", "count"),
    [(["a"], 100), (["a", "b", "c"], 100), (["a", "b"], 19)],
)
def test_too_little_says_nothing(variants: list[str], count: int) -> None:
    episodes, values = stream({"a": 0.8, "b": 0.5}, count)
    assert compare_variants(episodes, values, variants, 0.95) == ()


def test_episodes_without_a_propensity_do_not_count() -> None:
    episodes, values = stream({"a": 0.8, "b": 0.5}, 100)
    lost = [episode(200 + number, "a", None) for number in range(50)]
    plain = compare_variants(episodes, values, ["a", "b"], 0.95)
    assert compare_variants([*episodes, *lost], [*values, *[0.0] * 50], ["a", "b"], 0.95) == plain


def test_the_interval_is_wider_than_that_of_a_fixed_number_and_shrinks() -> None:
    at_once = 1.96 / 300**0.5
    assert at_once < half_width(300, 1.0, 0.05) < 2 * at_once
    assert half_width(10_000, 1.0, 0.05) < half_width(1_000, 1.0, 0.05) < half_width(100, 1.0, 0.05)
