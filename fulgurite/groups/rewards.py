"""Combines the named rewards of an episode: which of them count, and whether they are complete.

Of several rewards with one name for the same episode or action the last one counts: final before
provisional, then by event time and id. A value of null means that the reward could not be computed;
it completes its name and leaves the episode without a reward. A reward of an action that the
episode does not have is ignored. The episode's reward is the weighted sum of all rewards of the
episode (the outcome) and of its actions. Values are never normalised.

A fallback counts only for an episode for which nothing else does: what people say wins over what a
judge says of them. It completes nothing, so the episode waits for a vote until it is due.

Results fit in float32, in which a trainer computes: single values and weights are bounded when they
are accepted (`LARGEST_REWARD`, `LARGEST_WEIGHT`), and an episode whose rewards add up to more than
`LARGEST_TOTAL` has no reward.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from fulgurite.enums import FilterReason
from fulgurite.events import AgentReward, Declaration, Episode, EventStruct
from fulgurite.ids import action_id

LARGEST_REWARD = 1e6
"""Largest absolute value of one reward that the gateway, a reward function or a judge may give."""
LARGEST_WEIGHT = 1e6
"""Largest absolute value of a weight that a group may be declared with."""
LARGEST_TOTAL = 1e12
"""Largest sum of an episode's absolute rewards, weighted or not. Its square fits in float32."""
SMALLEST_SPREAD = 1e-6
"""Values that differ by this or less count as equal. Batches, credit rules and the learner's
estimator share this bound.
"""
LARGEST_CREDIT = 1e30
"""Largest absolute value of an action's credit that can be trained: divided by
`SMALLEST_SPREAD`, it still fits in float32.
"""


class EpisodeRewards(EventStruct, frozen=True, kw_only=True):
    """The combined rewards of one episode."""

    total: float
    """Sum of the outcome and all actions' rewards."""
    outcome: float
    """Weighted sum of the rewards of the whole episode."""
    actions: Mapping[str, float]
    """Weighted sums by action id."""
    named: Mapping[str, float]
    """Unweighted values by name; an action's values are summed."""


def counted(episode: Episode, rewards: Iterable[AgentReward]) -> tuple[AgentReward, ...]:
    """The rewards that count for an episode: one per name and target, ordered by these.

    Fallbacks are among them only where they are all there is.
    """
    choices = {call.call_id: {choice.index for choice in call.choices} for call in episode.calls}
    chosen: dict[tuple[str, str | None, int | None], AgentReward] = {}
    for reward in rewards:
        if reward.rollout_id != episode.rollout_id or reward.attempt not in (None, episode.attempt):
            continue
        if reward.call_id is not None and not _has_action(
            choices, reward.call_id, reward.choice or 0
        ):
            continue
        thing = (reward.name, reward.call_id, reward.choice)
        if thing not in chosen or _rank(chosen[thing]) < _rank(reward):
            chosen[thing] = reward
    only_fallbacks = all(reward.fallback for reward in chosen.values())
    return tuple(
        chosen[thing]
        for thing in sorted(chosen, key=lambda thing: (thing[0], thing[1] or "", thing[2] or 0))
        if only_fallbacks or not chosen[thing].fallback
    )


def is_complete(declaration: Declaration | None, rewards: Sequence[AgentReward]) -> bool:
    """Whether every expected reward is final; without expected names, whether one reward is."""
    final = {reward.name for reward in rewards if reward.final and not reward.fallback}
    expected = declaration.expected_rewards if declaration else ()
    return final >= set(expected) if expected else bool(final)


def combine(
    declaration: Declaration | None, rewards: Sequence[AgentReward]
) -> EpisodeRewards | FilterReason:
    """Combine counted rewards, or return why they cannot be: `no_reward` or `reward_failed`."""
    if any(reward.value is None for reward in rewards) or excess(declaration, rewards) is not None:
        return FilterReason.reward_failed
    expected = set(declaration.expected_rewards) if declaration else set[str]()
    if not rewards or not expected <= {reward.name for reward in rewards}:
        return FilterReason.no_reward
    weights = declaration.reward_weights if declaration else {}
    outcome, actions, named = 0.0, dict[str, float](), dict[str, float]()
    for reward in rewards:
        value = reward.value or 0.0
        paid = weights.get(reward.name, 1.0) * value
        named[reward.name] = named.get(reward.name, 0.0) + value
        if reward.call_id is None:
            outcome += paid
        else:
            action = action_id(reward.call_id, reward.choice or 0)
            actions[action] = actions.get(action, 0.0) + paid
    return EpisodeRewards(
        total=outcome + sum(actions.values()), outcome=outcome, actions=actions, named=named
    )


def excess(declaration: Declaration | None, rewards: Sequence[AgentReward]) -> str | None:
    """Explain why counted rewards are too large to be combined; None if they are not."""
    weights = declaration.reward_weights if declaration else {}
    values = [reward.value or 0.0 for reward in rewards]
    paid = [
        weights.get(reward.name, 1.0) * value for reward, value in zip(rewards, values, strict=True)
    ]
    for what, amounts in (("values", values), ("weighted values", paid)):
        total = sum(map(abs, amounts))
        if not is_bounded(total, LARGEST_TOTAL):
            return (
                f"the absolute {what} of its {len(rewards)} rewards add up to {total:g}; at most "
                f"{LARGEST_TOTAL:g} can be trained: scale the rewards down"
            )
    return None


def is_bounded(value: float, bound: float) -> bool:
    """Whether the value is finite and its absolute value at most `bound`."""
    return math.isfinite(value) and abs(value) <= bound


def _has_action(choices: Mapping[str, Collection[int]], call_id: str, choice: int) -> bool:
    """Whether the call exists and, if its choices are known, the choice."""
    return call_id in choices and (not choices[call_id] or choice in choices[call_id])


def _rank(reward: AgentReward) -> tuple[bool, bool, int, str]:
    return not reward.fallback, reward.final, reward.event_time, reward.event_id


def has_spread(values: Collection[float]) -> bool:
    """Whether the values differ by more than `SMALLEST_SPREAD`."""
    return max(values) - min(values) > SMALLEST_SPREAD
