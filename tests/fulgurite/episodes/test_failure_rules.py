"""What training makes of failures."""

from __future__ import annotations

import pytest

from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.episodes.failures import EXOGENOUS, FailureKind, FailurePolicy


def test_defaults() -> None:
    rules = FailureRules()
    assert rules.policy_of(None) is FailurePolicy.train
    assert {rules.policy_of(kind) for kind in EXOGENOUS} == {FailurePolicy.drop}
    assert rules.policy_of(FailureKind.truncated) is FailurePolicy.mask
    assert rules.policy_of(FailureKind.unknown) is FailurePolicy.mask
    assert rules.policy_of(FailureKind.agent_exception) is FailurePolicy.train


@pytest.mark.parametrize("policy", [FailurePolicy.drop, FailurePolicy.retry])
def test_what_the_policy_causes_is_not_dropped(policy: FailurePolicy) -> None:
    with pytest.raises(ValueError, match="caused by the policy"):
        FailureRules(policies={FailureKind.tool_parse_error: policy})
    assert (
        FailureRules(policies={FailureKind.cancelled: policy}).policy_of(FailureKind.cancelled)
        is policy
    )


def test_any_kind_may_be_penalised() -> None:
    rules = FailureRules(policies={FailureKind.loop_detected: FailurePolicy.penalise}, penalty=-1.0)
    assert rules.policy_of(FailureKind.loop_detected) is FailurePolicy.penalise


def test_mask_for_truncated_concerns_the_cut_answers_alone() -> None:
    rules = FailureRules()
    assert (rules.masks(FailureKind.truncated), rules.masks_cut_answers()) == (False, True)
    assert (
        rules.masks(FailureKind.unknown),
        rules.masks(None),
        rules.masks(FailureKind.tool_error),
    ) == (True, False, False)
    for policy in (FailurePolicy.train, FailurePolicy.penalise):
        assert not FailureRules(policies={FailureKind.truncated: policy}).masks_cut_answers()
