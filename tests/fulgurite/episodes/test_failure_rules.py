"""What training makes of failures."""

from __future__ import annotations

import pytest

from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.failures import EXOGENOUS, FailureAction, FailureKind


def test_defaults() -> None:
    rules = FailureRules()
    assert rules.action_for(None) is FailureAction.train
    assert {rules.action_for(kind) for kind in EXOGENOUS} == {FailureAction.drop}
    assert rules.action_for(FailureKind.truncated) is FailureAction.mask
    assert rules.action_for(FailureKind.unknown) is FailureAction.mask
    assert rules.action_for(FailureKind.agent_exception) is FailureAction.train


@pytest.mark.parametrize("policy", [FailureAction.drop, FailureAction.retry])
def test_what_the_policy_causes_is_not_dropped(policy: FailureAction) -> None:
    with pytest.raises(ValueError, match="the policy causes this failure"):
        FailureRules(policies={FailureKind.tool_parse_error: policy})
    assert (
        FailureRules(policies={FailureKind.cancelled: policy}).action_for(FailureKind.cancelled)
        is policy
    )


def test_any_kind_may_be_penalised() -> None:
    rules = FailureRules(policies={FailureKind.loop_detected: FailureAction.penalise}, penalty=-1.0)
    assert rules.action_for(FailureKind.loop_detected) is FailureAction.penalise


def test_mask_for_truncated_concerns_the_cut_answers_alone() -> None:
    rules = FailureRules()
    assert (rules.masks(FailureKind.truncated), rules.masks_cut_answers()) == (False, True)
    assert (
        rules.masks(FailureKind.unknown),
        rules.masks(None),
        rules.masks(FailureKind.tool_error),
    ) == (True, False, False)
    for policy in (FailureAction.train, FailureAction.penalise):
        assert not FailureRules(policies={FailureKind.truncated: policy}).masks_cut_answers()
