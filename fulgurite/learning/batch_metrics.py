"""Describes settled groups in numbers: rewards, what is not trained and why, and what that costs.

docs/reference/metrics.md has the names. Values that cannot be computed with are left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean, pstdev

from fulgurite.enums import FilterReason, LedgerTerm
from fulgurite.groups.rewards import LARGEST_CREDIT, LARGEST_TOTAL, is_bounded
from fulgurite.learning.batching import BatchGroup
from fulgurite.learning.members import Member

MOST_NAMES = 20
"""Components and agents that have a metric each: the most frequent, for agents may invent names."""

_TEACHES_NOTHING = frozenset({FilterReason.no_signal, FilterReason.no_baseline})
_DECILES = 10
_DEAD = "dead_lettered"
"""Of actions without an outcome: their group failed the trainer."""


def batch_metrics(groups: Sequence[BatchGroup]) -> dict[str, float]:
    """The metrics of groups that were settled together."""
    members = [member for group in groups for member in group.members]
    return {
        **_shares(groups),
        **_rewards(members),
        **_rows(members),
        **_outcomes(groups),
        **_drop_rates(groups),
    }


def _shares(groups: Sequence[BatchGroup]) -> dict[str, float]:
    with_signal = sum(bool(group.episodes) for group in groups)
    metrics = {"groups": float(len(groups)), "groups_with_signal": float(with_signal)}
    if groups:
        metrics["share_without_signal"] = 1 - with_signal / len(groups)
    return metrics


def _rewards(members: Sequence[Member]) -> dict[str, float]:
    scored = [
        (member, member.reward)
        for member in members
        if member.reward is not None and is_bounded(member.reward, LARGEST_TOTAL)
    ]
    rewards = [reward for _, reward in scored]
    metrics = {"reward_mean": fmean(rewards), "reward_std": pstdev(rewards)} if rewards else {}
    metrics |= _means(
        "reward/component",
        (
            (name, value)
            for member in members
            for name, value in member.rewards.items()
            if is_bounded(value, LARGEST_TOTAL)
        ),
    )
    metrics |= _means(
        "reward/agent",
        (
            (agent, reward)
            for member, reward in scored
            for agent in {action.agent for action in member.actions}
        ),
    )
    metrics |= _means(
        "credit/agent",
        (
            (action.agent, action.credit)
            for member, _ in scored
            for action in member.actions
            if is_bounded(action.credit, LARGEST_CREDIT)
        ),
    )
    metrics |= _means(
        "reward/failure", ((str(member.failure or "none"), reward) for member, reward in scored)
    )
    return metrics


def _means(prefix: str, values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of the values of each of the most frequent names; unnamed ones have none."""
    by_name: defaultdict[str, list[float]] = defaultdict(list)
    for name, value in values:
        by_name[name].append(value)
    by_name.pop("", None)
    most = sorted(by_name, key=lambda name: (-len(by_name[name]), name))[:MOST_NAMES]
    return {f"{prefix}/{name}": fmean(by_name[name]) for name in sorted(most)}


def _rows(members: Sequence[Member]) -> dict[str, float]:
    with_rows = [member for member in members if member.rows]
    breaks = Counter(kind for member in members for kind in member.breaks)
    metrics = {"episodes": float(len(with_rows))}
    if with_rows:
        metrics["rows_per_episode"] = fmean(member.rows for member in with_rows)
    return metrics | {f"prefix_breaks/{kind}": float(count) for kind, count in breaks.items()}


def _outcomes(groups: Sequence[BatchGroup]) -> dict[str, float]:
    """Actions and their tokens by what became of them."""
    actions = Counter(_name(outcome) for group in groups for outcome in group.outcomes.values())
    tokens: Counter[str] = Counter()
    for group in groups:
        for member in group.members:
            for action in member.actions:
                outcome = group.outcomes.get(action.action)
                tokens[_name(outcome) if outcome else _DEAD] += action.tokens
                actions[_DEAD] += outcome is None
    return {
        "actions/trained": float(actions.pop(LedgerTerm.trained, 0)),
        **{f"actions/{name}": float(count) for name, count in sorted(actions.items()) if count},
        "tokens/trained": float(tokens.pop(LedgerTerm.trained, 0)),
        **{
            f"tokens/discarded/{name.removeprefix('filtered/')}": float(count)
            for name, count in sorted(tokens.items())
        },
    }


def _name(outcome: tuple[LedgerTerm, FilterReason | None]) -> str:
    term, reason = outcome
    return term if reason is None else f"{term}/{reason}"


def _drop_rates(groups: Sequence[BatchGroup]) -> dict[str, float]:
    """By length decile of the episodes, the share of actions that are dropped.

    Groups that teach nothing do not count: they are dropped whatever their length is.
    """
    found = sorted(_lengths(groups))
    decile_of = [rank * _DECILES // len(found) for rank in range(len(found))]
    sums: Mapping[int, list[int]] = {decile: [0, 0] for decile in decile_of}
    for decile, (_, dropped, actions) in zip(decile_of, found, strict=True):
        sums[decile][0] += dropped
        sums[decile][1] += actions
    return {
        f"drop_rate/length_decile_{decile + 1}": dropped / actions
        for decile, (dropped, actions) in sums.items()
    }


def _lengths(groups: Sequence[BatchGroup]) -> Iterator[tuple[int, int, int]]:
    """Each episode's tokens, and how many of its actions are dropped, of how many."""
    for group in groups:
        for member in group.members:
            outcomes = [group.outcomes.get(action.action) for action in member.actions]
            worth = [one for one in outcomes if one is None or one[1] not in _TEACHES_NOTHING]
            if worth:
                dropped = sum(one is None or one[0] is not LedgerTerm.trained for one in worth)
                yield member.tokens, dropped, len(worth)
