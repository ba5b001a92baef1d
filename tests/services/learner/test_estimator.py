"""Advantages compare episodes, credit actions, and are verl's GRPO where the two agree."""

# verl ships no usable annotations for its registry.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.groups.credit import credit_rule
from fulgurite.groups.credit.types import Path, Scored, Step
from fulgurite.groups.rewards import LARGEST_CREDIT, LARGEST_TOTAL
from services.learner.errors import NoBaseline

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from services.learner.verl_cpu import select

    select("cpu")
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    from services.learner.estimator import NAME, group_advantages


def advantages_of(credits_A: list[float], rewards: list[float]) -> list[float]:
    """Of actions that are compared with whole episodes."""
    return group_advantages(credits_A, [rewards] * len(credits_A))


@pytest.mark.parametrize("divide", [True, False])
def test_with_one_row_per_episode_and_identical_credit_it_is_verl_s_grpo(*, divide: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(12, 9, generator=generator) < 0.7).float()
    rewards = torch.zeros_like(mask)
    rewards[:, -1] = torch.rand(12, generator=generator)
    given = {
        "response_mask": mask,
        "index": np.repeat(np.arange(3), 4),
        "norm_adv_by_std_in_grpo": divide,
    }
    ours, _ = get_adv_estimator_fn(NAME)(token_level_rewards=rewards.clone(), **given)
    theirs, _ = get_adv_estimator_fn("grpo")(token_level_rewards=rewards.clone(), **given)
    torch.testing.assert_close(ours, theirs)


def test_an_episode_of_three_rows_counts_once() -> None:
    root = 2**-0.5
    assert advantages_of([1.0, 1.0, 1.0], [1.0, 0.0]) == pytest.approx([root] * 3, rel=1e-4)
    assert advantages_of([0.0], [1.0, 0.0]) == pytest.approx([-root], rel=1e-4)


def test_actions_keep_their_own_credit_and_episodes_without_rows_stay_in_the_baseline() -> None:
    rewards = [1.0, 0.0, 0.5]
    expected = [
        (credit - np.mean(rewards)) / (np.std(rewards, ddof=1) + 1e-6) for credit in (0.25, 1.0)
    ]
    assert advantages_of([0.25, 1.0], rewards) == pytest.approx(expected, rel=1e-5)


def test_under_gigpo_the_advantage_is_that_of_the_paper() -> None:
    """Two episodes part after a state that both were in: A = A_E + ω A_S, and what nobody else
    could have done has A_S = 0.
    """
    first = Path(
        steps=(Step(action="a", observation=b"x"), Step(action="b", observation=b"y")),
        outcome=1.0,
        total=1.0,
    )
    second = Path(steps=(Step(action="c", observation=b"x"),), outcome=0.0, total=0.0)
    rewards = [1.0, 0.0]
    credits_of = credit_rule("gigpo(gamma=0.5, omega=2)")(
        [Scored(total=1.0, paths=(first,)), Scored(total=0.0, paths=(second,))]
    )
    unit = 0.5**0.5
    found = [advantages_of(list(one.values()), rewards) for one in credits_of]
    assert found[0] == pytest.approx([unit + 2 * unit, unit], abs=1e-4)
    assert found[1] == pytest.approx([-unit - 2 * unit], abs=1e-4)


def test_each_action_is_compared_with_its_own_peers() -> None:
    found = group_advantages([3.0, 1.0, 5.0], [[1.0, 3.0], [1.0, 3.0], [5.0, 4.0, 3.0]])
    unit = 0.5**0.5
    assert found == pytest.approx([unit, -unit, 1.0], rel=1e-4)


def test_equal_rewards_with_different_credit_are_centred_and_not_blown_up() -> None:
    assert advantages_of([1.0, 0.0], [1.0, 1.0]) == pytest.approx([0.0, -1.0])


def test_no_actions_have_no_advantages() -> None:
    assert advantages_of([], [1.0, 0.0]) == []


@pytest.mark.parametrize("rewards", [[], [1.0]])
def test_fewer_than_two_scored_episodes_are_no_baseline(rewards: list[float]) -> None:
    with pytest.raises(NoBaseline):
        advantages_of([1.0], rewards)


AMOUNTS = st.sampled_from([0.0, 1e-9, 2e-6, 1.0, 1e6, LARGEST_TOTAL]) | st.floats(
    -LARGEST_TOTAL, LARGEST_TOTAL
)
CREDITS = st.sampled_from([0.0, LARGEST_CREDIT, -LARGEST_CREDIT]) | st.floats(
    -LARGEST_CREDIT, LARGEST_CREDIT
)


@given(st.lists(CREDITS, min_size=1, max_size=4), st.lists(AMOUNTS, min_size=2, max_size=5))
def test_whatever_is_accepted_has_a_finite_advantage(
    credits_A: list[float], rewards: list[float]
) -> None:
    assert all(math.isfinite(advantage) for advantage in advantages_of(credits_A, rewards))
