"""Tells the outcome of each action of a run: trained, filtered, or still waiting.

An entry of `training.ledger` decides. Until it is written, the outcome is predicted from the
episode by the learner's own rules, under the rewarder's default failure rules. So a run can say
within seconds that none of its actions will be trained, and why.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from fulgurite.diagnosis.facts import NO_LEARNER, NO_POLICY, WAITING
from fulgurite.enums import FilterReason
from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.errors import FulguriteError
from fulgurite.events import Episode, LedgerEntry
from fulgurite.failures import FailureAction
from fulgurite.groups.rewards import has_spread
from fulgurite.ids import action_id
from fulgurite.learning.learners import Learners
from fulgurite.ledger.outcomes import ActionOutcomes, word_of
from fulgurite.tokens import token_count
from fulgurite.trajectories.building import build_trajectories
from services.runner.scoreboard import Score

_RULES = FailureRules()


class _Expected(NamedTuple):
    """What is known of an action without its group."""

    policy: str | None
    reason: FilterReason | None
    """Why it will not be trained, whatever its reward."""
    row_tokens: int


class Outcomes:
    """Counts outcomes of actions from the episodes and ledger entries that it is given."""

    def __init__(self, learners: Learners, *, rewarded: bool) -> None:
        """`rewarded`: whether the run has rewards of its own, so that they are known here."""
        self._learners = learners
        self._rewarded = rewarded
        self._actions: defaultdict[str, dict[str, dict[str, _Expected]]] = defaultdict(dict)
        """By group and attempt."""
        self._ledger = ActionOutcomes()

    def on_episode(self, episode: Episode) -> None:
        """Add the actions of an attempt that has ended."""
        attempt = self._actions[episode.group_id][f"{episode.rollout_id}/{episode.attempt}"] = {}
        try:
            built = build_trajectories(episode, _RULES)
        except FulguriteError:
            # The rewarder cannot close it either: it writes a dead letter, and no ledger entry.
            return
        given_up = FilterReason.superseded if episode.will_retry else None
        attempt |= {
            action_id(action.call_id, action.choice): _Expected(
                row.policy, given_up or action.mask, token_count(row.token_ids)
            )
            for row in built.rows
            for action in row.actions
            if action.loss
        } | {
            lost.action: _Expected(lost.policy, given_up or lost.reason, 0)
            for lost in built.left_out
        }

    def on_ledger(self, entry: LedgerEntry) -> None:
        """Add outcomes of actions; see ActionOutcomes."""
        self._ledger.add(entry)

    def of_group(self, group_id: str, scores: Sequence[Score]) -> Counter[str]:
        """Count the actions of a group by outcome: trained, waiting, or the reason of a filter."""
        of_all = _group_reason(scores) if self._rewarded else None
        by_rollout = {score.rollout_id: score for score in scores}
        counted: Counter[str] = Counter()
        for attempt, actions in self._actions[group_id].items():
            score = by_rollout.get(attempt.rpartition("/")[0])
            for action, expected in actions.items():
                known = self._ledger.of(action)
                counted[
                    word_of(known)
                    if known
                    else self._predicted(score, expected, of_all)
                    if score
                    else WAITING
                ] += 1
        return counted

    def policies(self, group_id: str | None = None) -> set[str]:
        """The policies that answered calls, of a group or of all."""
        groups = self._actions.values() if group_id is None else [self._actions[group_id]]
        return {
            expected.policy
            for attempts in groups
            for actions in attempts.values()
            for expected in actions.values()
            if expected.policy
        }

    def oversized(self) -> tuple[int, int]:
        """Number of attempts with a row too long for the learner, and of all with actions."""
        attempts = [
            actions for group in self._actions.values() for actions in group.values() if actions
        ]
        return sum(
            any(self._is_oversized(expected) for expected in actions.values())
            for actions in attempts
        ), len(attempts)

    def _predicted(self, score: Score, expected: _Expected, of_all: FilterReason | None) -> str:
        if expected.policy is None:
            return NO_POLICY
        if expected.reason is not None:
            return str(expected.reason)
        if score.failure is not None and _RULES.action_for(score.failure) in (
            FailureAction.drop,
            FailureAction.retry,
        ):
            return str(FilterReason.failure_dropped)
        if self._rewarded and None in score.rewards.values():
            return str(FilterReason.reward_failed)
        if _RULES.masks(score.failure):
            return str(FilterReason.failure_masked)
        config = self._learners.config(expected.policy)
        is_lone = of_all is FilterReason.no_baseline
        if of_all is not None and not (is_lone and config.trains_groups_of_one):
            return str(of_all)
        if self._is_oversized(expected):
            return str(FilterReason.oversized)
        return WAITING if self._learners.train(expected.policy) else NO_LEARNER

    def _is_oversized(self, expected: _Expected) -> bool:
        limit = self._learners.config(expected.policy or "").max_row_tokens
        return limit is not None and expected.row_tokens > limit


def _group_reason(scores: Sequence[Score]) -> FilterReason | None:
    """Why a group cannot be trained, once all its rewards are known; None if it can."""
    if any(
        not score.closed or (score.reward is None and None not in score.rewards.values())
        for score in scores
    ):
        return None
    rewards = [
        score.reward
        for score in scores
        if score.reward is not None
        and _RULES.action_for(score.failure) not in (FailureAction.drop, FailureAction.retry)
    ]
    if len(rewards) < 2:
        return FilterReason.no_baseline
    return None if has_spread(rewards) else FilterReason.no_signal
