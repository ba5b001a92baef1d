"""Decides what training does with a failed episode, by its kind of failure, and names what is not
trained at all: policies, and calls that are no part of the task.

By default, failures that the policy did not cause (exogenous kinds) are dropped, others are
trained, and an unknown kind is masked. For `truncated`, `mask` masks only the cut answers, in any
episode. Only exogenous kinds may be dropped or retried: doing so with the policy's own failures
would be survivor bias. An infrastructure failure is never trained as reward 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fulgurite.episodes.exclusions import ExclusionRule
from fulgurite.failures import EXOGENOUS, FailureAction, FailureKind


def _defaults() -> dict[FailureKind, FailureAction]:
    policies = {
        kind: FailureAction.drop if kind in EXOGENOUS else FailureAction.train
        for kind in FailureKind
    }
    return policies | {
        FailureKind.unknown: FailureAction.mask,
        FailureKind.truncated: FailureAction.mask,
    }


class FailureRules(msgspec.Struct, frozen=True, kw_only=True):
    """The action for each kind of failure; `FailureRules()` has the defaults.

    Raises ValueError for a kind that may not be dropped or retried.
    """

    policies: Mapping[FailureKind, FailureAction] = msgspec.field(
        default_factory=dict[FailureKind, FailureAction]
    )
    """Actions that differ from the defaults."""
    penalty: float = 0.0
    """Reward of an episode whose kind is `penalise`."""
    frozen: frozenset[str] = frozenset()
    """Policies that no learner trains. Their actions are filtered when the group is closed; their
    episodes' rewards are compared like others."""
    exclusions: tuple[ExclusionRule, ...] = ()
    """Calls that are no part of their episode's task."""

    def __post_init__(self) -> None:
        for kind, policy in self.policies.items():
            if policy in (FailureAction.drop, FailureAction.retry) and kind not in EXOGENOUS:
                raise ValueError(
                    f"{kind}={policy}: the policy causes this failure, so it can only be `train`, "
                    "`mask` or `penalise`"
                )

    def action_for(self, failure: FailureKind | None) -> FailureAction:
        """The action for an episode's failure; `train` without one."""
        if failure is None:
            return FailureAction.train
        return self.policies.get(failure, DEFAULTS[failure])

    def masks(self, failure: FailureKind | None) -> bool:
        """Whether an episode with this failure carries no loss at all."""
        return (
            failure is not FailureKind.truncated and self.action_for(failure) is FailureAction.mask
        )

    def masks_cut_answers(self) -> bool:
        """Whether an answer that was cut by its length limit carries no loss."""
        return self.action_for(FailureKind.truncated) is FailureAction.mask


DEFAULTS = _defaults()
