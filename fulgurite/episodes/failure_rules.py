"""Says what training does with an episode that failed, by kind of failure.

Defaults: what the policy did not cause is dropped, what it caused is trained like anything else, an
unknown kind is masked. `mask` for `truncated` concerns the cut answers alone, in any episode: the
rest of it is trained. Only exogenous kinds may be dropped or retried: retrying away what the policy
did is survivor bias. An episode that failed for infrastructure is never trained as reward 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

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
    """A policy per kind; `FailureRules()` has the defaults. Raises ValueError for a kind that may
    not be dropped or retried.
    """

    policies: Mapping[FailureKind, FailureAction] = msgspec.field(
        default_factory=dict[FailureKind, FailureAction]
    )
    """Where it differs from the defaults."""
    penalty: float = 0.0
    """Reward of an episode whose kind is `penalise`."""

    def __post_init__(self) -> None:
        for kind, policy in self.policies.items():
            if policy in (FailureAction.drop, FailureAction.retry) and kind not in EXOGENOUS:
                raise ValueError(
                    f"{kind} is caused by the policy: it may be trained, masked or penalised, "
                    f"not {policy}"
                )

    def action_for(self, failure: FailureKind | None) -> FailureAction:
        """The policy for an episode's failure; without one: train."""
        if failure is None:
            return FailureAction.train
        return self.policies.get(failure, DEFAULTS[failure])

    def masks(self, failure: FailureKind | None) -> bool:
        """Whether all actions of an episode with that failure carry no loss."""
        return (
            failure is not FailureKind.truncated and self.action_for(failure) is FailureAction.mask
        )

    def masks_cut_answers(self) -> bool:
        """Whether an action that was cut by its length limit carries no loss, whatever its
        episode's failure.
        """
        return self.action_for(FailureKind.truncated) is FailureAction.mask


DEFAULTS = _defaults()
