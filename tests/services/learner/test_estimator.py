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
from services.learner.algorithms import ALGORITHMS
from services.learner.errors import NoBaseline

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from services.learner.engine.cpu_platform import select

    select("cpu")
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    from services.learner.estimator import NAME, advantages_of


def of_episodes(credits_A: list[float], rewards: list[float], name: str = "grpo") -> list[float]:
    """Advantages of actions that are compared with whole episodes."""
    count = len(credits_A)
    return advantages_of(credits_A, [rewards] * count, [1] * count, ALGORITHMS[name])


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
    assert of_episodes([1.0, 1.0, 1.0], [1.0, 0.0]) == pytest.approx([root] * 3, rel=1e-4)
    assert of_episodes([0.0], [1.0, 0.0]) == pytest.approx([-root], rel=1e-4)


def test_actions_keep_their_own_credit_and_episodes_without_rows_stay_in_the_baseline() -> None:
    rewards = [1.0, 0.0, 0.5]
    expected = [
        (credit - np.mean(rewards)) / (np.std(rewards, ddof=1) + 1e-6) for credit in (0.25, 1.0)
    ]
    assert of_episodes([0.25, 1.0], rewards) == pytest.approx(expected, rel=1e-5)


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
    found = [of_episodes(list(one.values()), rewards) for one in credits_of]
    assert found[0] == pytest.approx([unit + 2 * unit, unit], abs=1e-4)
    assert found[1] == pytest.approx([-unit - 2 * unit], abs=1e-4)


def test_with_one_row_per_episode_rloo_is_verl_s() -> None:
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(0))
    theirs, _ = get_adv_estimator_fn("rloo")(
        token_level_rewards=rewards[:, None],
        response_mask=torch.ones(12, 1),
        index=np.repeat(np.arange(3), 4),
    )
    groups = [group.tolist() for group in rewards.split(4)]
    ours = [of_episodes(group, group, "rloo") for group in groups]
    assert np.concatenate(ours) == pytest.approx(theirs[:, 0].tolist(), abs=1e-6)


def test_reinforce_pp_is_verl_s_over_all_tokens_of_the_batch() -> None:
    """Credits 1 and 0 at three tokens and one: the mean over tokens is 3/4."""
    found = advantages_of([1.0, 0.0], [[], []], [3, 1], ALGORITHMS["reinforce++"])
    assert found == pytest.approx([0.25 / 0.5, -0.75 / 0.5], rel=1e-3)


@given(
    st.lists(st.floats(-10, 10), min_size=2, max_size=8),
    st.sampled_from(["grpo", "dr_grpo", "rloo", "reinforce++"]),
)
def test_advantages_are_centred(rewards: list[float], name: str) -> None:
    found = of_episodes(rewards, rewards, name)
    assert sum(found) == pytest.approx(0, abs=1e-3 * max(1.0, *map(abs, found)))


def test_each_action_is_compared_with_its_own_peers() -> None:
    peers = [[1.0, 3.0], [1.0, 3.0], [5.0, 4.0, 3.0]]
    found = advantages_of([3.0, 1.0, 5.0], peers, [1, 1, 1], ALGORITHMS["grpo"])
    unit = 0.5**0.5
    assert found == pytest.approx([unit, -unit, 1.0], rel=1e-4)


def test_equal_rewards_with_different_credit_are_centred_and_not_blown_up() -> None:
    assert of_episodes([1.0, 0.0], [1.0, 1.0]) == pytest.approx([0.0, -1.0])


def test_no_actions_have_no_advantages() -> None:
    assert of_episodes([], [1.0, 0.0]) == []


@pytest.mark.parametrize("rewards", [[], [1.0]])
def test_fewer_than_two_scored_episodes_are_no_baseline(rewards: list[float]) -> None:
    with pytest.raises(NoBaseline):
        of_episodes([1.0], rewards)


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
    assert all(math.isfinite(advantage) for advantage in of_episodes(credits_A, rewards))
