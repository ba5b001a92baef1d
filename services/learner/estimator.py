"""Registers the advantage estimator `fulgurite_group` with verl: compares episodes, credits
actions.

verl's outcome estimators sum a row's token rewards to one scalar and compare rows. Here an action's
credit is compared with others of its kind (`fulgurite.learning.comparison`), episodes without rows
included, and the difference is spread over the action's tokens. With one row per episode and the
whole reward as every action's credit it is verl's `grpo`.
"""

# verl ships no usable annotations for its registry.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, register_adv_est

from fulgurite.groups.rewards import SMALLEST_SPREAD
from services.learner.algorithms.algorithm import Algorithm
from services.learner.errors import NoBaseline

NAME = "fulgurite_group"


@register_adv_est(NAME)
def group_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: NDArray[Any],
    action_credits: torch.Tensor | None = None,
    group_rewards: Mapping[Any, Sequence[float]] | None = None,
    epsilon: float = SMALLEST_SPREAD,
    norm_adv_by_std_in_grpo: bool = True,
    leave_one_out: bool = False,
    config: Any = None,
    **_others: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute advantages and returns (row, T) from rewards and mask (row, T) and groups (row,).

    The signature is verl's. `action_credits` (row, T): the credit of each token's action, by
    default the row's summed reward. `group_rewards`: the rewards of a group's scored episodes, by
    default those of its rows. Raises NoBaseline for a group with fewer than two; verl would use the
    raw reward.
    """
    scores = token_level_rewards.sum(dim=-1)
    if action_credits is None:
        action_credits = scores[:, None].expand_as(token_level_rewards)
    if group_rewards is None:
        by_row: defaultdict[Any, list[float]] = defaultdict(list)
        for group, score in zip(index, scores.tolist(), strict=True):
            by_row[group].append(score)
        group_rewards = by_row
    baselines: dict[Any, tuple[float, float]] = {}
    for group in set(index):
        rewards = torch.tensor(group_rewards.get(group, ()), dtype=action_credits.dtype)
        if len(rewards) < 2:
            raise NoBaseline(f"group {group} has {len(rewards)} scored episodes")
        spread = float(rewards.std())
        # Equal rewards with different credits: there is no spread to divide by, and dividing by
        # epsilon would blow the differences up.
        normalise = norm_adv_by_std_in_grpo and spread > epsilon
        scale = spread + epsilon if normalise else 1.0
        # What remains when a value's own share is taken out of the mean.
        others = (len(rewards) - 1) / len(rewards) if leave_one_out else 1.0
        baselines[group] = float(rewards.mean()), scale * others
    mean = torch.tensor(
        [baselines[group][0] for group in index],
        dtype=action_credits.dtype,
        device=action_credits.device,
    )
    scale = torch.tensor(
        [baselines[group][1] for group in index],
        dtype=action_credits.dtype,
        device=action_credits.device,
    )
    advantages = (action_credits - mean[:, None]) / scale[:, None] * response_mask
    return advantages, advantages


def advantages_of(
    credits_A: Sequence[float],
    peers_A: Sequence[Sequence[float]],
    tokens_A: Sequence[int],
    algorithm: Algorithm,
) -> list[float]:
    """Compute the advantage of each of a batch's actions (A,). Raises NoBaseline.

    `peers_A`: what each credit is compared with, two values at least
    (`fulgurite.learning.comparison`), unless the algorithm compares within the batch. `tokens_A`:
    the tokens of each action.
    """
    if not credits_A:
        return []
    if algorithm.comparison == "batch":
        return _batch_advantages(credits_A, tokens_A)
    # Rewards that hardly differ keep their differences in double precision.
    credits_A1 = torch.tensor(credits_A, dtype=torch.float64)[:, None]
    kinds = {peers: kind for kind, peers in enumerate(dict.fromkeys(map(tuple, peers_A)))}
    compute = get_adv_estimator_fn(NAME)
    advantages, _ = compute(
        token_level_rewards=torch.zeros_like(credits_A1),
        response_mask=torch.ones_like(credits_A1),
        index=np.array([kinds[tuple(peers)] for peers in peers_A]),
        action_credits=credits_A1,
        group_rewards={kind: peers for peers, kind in kinds.items()},
        norm_adv_by_std_in_grpo=algorithm.divides_by_spread,
        leave_one_out=algorithm.comparison == "leave_one_out",
    )
    return cast("list[float]", advantages[:, 0].tolist())


def _batch_advantages(credits_A: Sequence[float], tokens_A: Sequence[int]) -> list[float]:
    """verl's REINFORCE++, to which an action is a row that is rewarded at its last token."""
    mask = torch.arange(max(tokens_A))[None, :] < torch.tensor(tokens_A)[:, None]
    rewards = torch.zeros(mask.shape, dtype=torch.float64)
    rewards[torch.arange(len(tokens_A)), torch.tensor(tokens_A) - 1] = torch.tensor(
        credits_A, dtype=torch.float64
    )
    advantages, _ = get_adv_estimator_fn("reinforce_plus_plus")(
        token_level_rewards=rewards, response_mask=mask.double(), config=AlgoConfig(gamma=1.0)
    )
    return cast("list[float]", advantages[:, 0].tolist())
