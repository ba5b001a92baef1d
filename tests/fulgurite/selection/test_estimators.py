"""The estimates are unbiased and their intervals hold the truth, on logs whose truth is known."""

from __future__ import annotations

from random import Random
from statistics import fmean

import msgspec
import pytest

from fulgurite.learning.intervals import Estimate
from fulgurite.selection.comparison import RouterComparison, compare_routers
from fulgurite.selection.estimators import doubly_robust, self_normalised
from fulgurite.selection.logged import LoggedEpisode, Weights

MEANS = {("easy", "a"): 0.9, ("easy", "b"): 0.8, ("hard", "a"): 0.2, ("hard", "b"): 0.6}
"""Chance of a reward of 1; the contexts are equally frequent."""
TRUTH = {"a": 0.55, "b": 0.70}
CANDIDATE = {"a": 0.3, "b": 0.7}
EARNS = 0.3 * TRUTH["a"] + 0.7 * TRUTH["b"]
SEEDS = 300


def log(
    seed: int, count: int, share_of_b: dict[str, float], per_group: int = 1
) -> list[LoggedEpisode]:
    """A router's log; its shares may depend on the context, which rollouts of a group share."""
    random, found = Random(seed), list[LoggedEpisode]()
    for number in range(count // per_group):
        cell = random.choice(["easy", "hard"])
        for _ in range(per_group):
            variant = "b" if random.random() < share_of_b[cell] else "a"
            share = share_of_b[cell] if variant == "b" else 1 - share_of_b[cell]
            reward = float(random.random() < MEANS[cell, variant])
            found.append(
                LoggedEpisode(
                    group_id=f"g{number}", variant=variant, propensity=share, reward=reward,
                    price=None, seconds=0.0, cell=cell,
                )
            )  # fmt: skip
    return found


def compared(
    share_of_b: dict[str, float], count: int = 300, per_group: int = 1
) -> list[RouterComparison]:
    return [
        compare_routers(log(seed, count, share_of_b, per_group), CANDIDATE, Weights())
        for seed in range(SEEDS)
    ]


def holds(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high


@pytest.mark.parametrize(
    ("share_of_b", "per_group"),
    [
        pytest.param({"easy": 0.2, "hard": 0.2}, 1, id="a router without context"),
        pytest.param({"easy": 0.7, "hard": 0.15}, 1, id="a router with context"),
        pytest.param({"easy": 0.2, "hard": 0.2}, 4, id="groups of rollouts"),
    ],
)
def test_both_estimators_hit_the_truth_and_their_intervals_hold_it(
    share_of_b: dict[str, float], per_group: int
) -> None:
    earned_before = fmean(
        (1 - share) * MEANS[cell, "a"] + share * MEANS[cell, "b"]
        for cell, share in share_of_b.items()
    )
    found = compared(share_of_b, per_group=per_group)
    for name, truth in (
        ("candidate", EARNS),
        ("candidate_by_weighting", EARNS),
        ("logged", earned_before),
        ("difference", EARNS - earned_before),
    ):
        estimates: list[Estimate] = [getattr(one, name) for one in found]
        error = fmean(estimate.mean for estimate in estimates) - truth
        assert abs(error) < 0.01, name
        coverage = fmean(holds(estimate, truth) for estimate in estimates)
        # Four standard errors of a coverage of 0.95 over the seeds; the seeds are fixed.
        assert 0.90 < coverage <= 1.0, (name, coverage)


def test_the_mean_of_a_variants_episodes_is_biased_where_the_router_looks_at_the_context() -> None:
    share_of_b = {"easy": 0.7, "hard": 0.15}
    naive, robust = list[float](), list[float]()
    for seed in range(SEEDS):
        episodes = log(seed, 300, share_of_b)
        naive.append(fmean(one.reward for one in episodes if one.variant == "b"))
        robust.append(compare_routers(episodes, {"b": 1.0}, Weights()).candidate.mean)
    assert fmean(naive) > TRUTH["b"] + 0.04
    assert abs(fmean(robust) - TRUTH["b"]) < 0.01


def test_the_model_narrows_the_interval_where_the_context_decides_the_reward() -> None:
    certain = {"easy": 0.9, "hard": 0.1}
    episodes = [
        msgspec.structs.replace(one, reward=certain[one.cell])
        for one in log(0, 300, {"easy": 0.2, "hard": 0.2})
    ]
    found = compare_routers(episodes, CANDIDATE, Weights())

    def width(estimate: Estimate) -> float:
        return (estimate.high or 0) - (estimate.low or 0)

    assert width(found.candidate) < 0.7 * width(found.candidate_by_weighting)
    assert found.difference.mean == pytest.approx(0, abs=1e-9)


def test_self_normalisation_is_the_weighted_mean() -> None:
    values = self_normalised([1.0, 0.0, 0.5], [2.0, 1.0, 1.0])
    assert fmean(values) == pytest.approx(2.5 / 4)
    assert self_normalised([3.0, 5.0], [1.0, 1.0]) == [3.0, 5.0], "the logged router itself"


def test_doubly_robust_values_by_hand() -> None:
    def one(variant: str, cell: str) -> LoggedEpisode:
        return LoggedEpisode(
            group_id="g", variant=variant, propensity=0.5, reward=0, price=None, seconds=0, cell=cell
        )  # fmt: skip

    episodes = [one("a", "x"), one("a", "x"), one("a", "y"), one("b", "x")]
    found = doubly_robust(
        episodes, [1.0, 0.0, 0.5, 4.0], [1.0, 1.0, 1.0, 1.0], {"a": 0.5, "b": 0.5, "c": 0.0}
    )
    assert found[0] == pytest.approx(0.5 * 0.0 + 0.5 * 4.0 + (1.0 - 0.0)), "the cell without it"
    assert found[2] == pytest.approx(0.5 * 0.5 + 0.5 * 4.0 + (0.5 - 0.5)), "the variant without it"
    assert found[3] == pytest.approx(0.5 * 0.5 + 0.5 * 0.5 + (4.0 - 0.5)), "all without it"
