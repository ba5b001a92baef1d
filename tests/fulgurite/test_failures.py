"""Failure kinds, and which of them the policy does not cause."""

from __future__ import annotations

from fulgurite.failures import EXOGENOUS, FailureAction, FailureKind


def test_every_kind_is_its_own_name() -> None:
    assert all(kind.value == kind.name for kind in FailureKind)
    assert all(policy.value == policy.name for policy in FailureAction)


def test_what_the_policy_causes_is_not_exogenous() -> None:
    """Retrying or dropping these would be survivor bias."""
    caused = {
        FailureKind.context_overflow,
        FailureKind.truncated,
        FailureKind.tool_parse_error,
        FailureKind.tool_error,
        FailureKind.invalid_output,
        FailureKind.agent_exception,
        FailureKind.agent_timeout,
        FailureKind.agent_silent,
        FailureKind.loop_detected,
    }
    assert not caused & EXOGENOUS
    assert caused | EXOGENOUS | {FailureKind.unknown} == set(FailureKind)
