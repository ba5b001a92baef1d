"""Why a recorded call is no part of the ledger."""

from __future__ import annotations

import pytest

from fulgurite.enums import CallOutcome, Mode, TrainingUse
from fulgurite.ledger.untrained import UNTRAINED, Untrained, UntrainedActions, why_untrained
from tests.synthetic import make_call


@pytest.mark.parametrize(
    ("mode", "policy", "why"),
    [
        (Mode.train, "policy", None),
        (Mode.train, None, Untrained.no_policy),
        (Mode.val, "policy", Untrained.val),
        (Mode.val, None, Untrained.val),
        (Mode.live, "policy", Untrained.live),
        (Mode.live, None, Untrained.live),
    ],
)
def test_mode_and_policy_say_why(mode: Mode, policy: str | None, why: Untrained | None) -> None:
    assert why_untrained(make_call(mode=mode, policy=policy)) is why


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (TrainingUse.live, None),
        (TrainingUse.quota, None),
        (TrainingUse.excluded, Untrained.left_out),
        (TrainingUse.unknown, Untrained.left_out),
    ],
)
def test_live_traffic_is_counted_by_opt_in(use: TrainingUse, why: Untrained | None) -> None:
    assert why_untrained(make_call(mode=Mode.live, use=use)) is why
    assert why_untrained(make_call(mode=Mode.train, use=use)) is None
    assert why_untrained(make_call(mode=Mode.val, use=use)) is Untrained.val
    assert why_untrained(make_call(mode=Mode.live, policy=None, use=use)) is (why or Untrained.live)


def test_every_reason_has_words() -> None:
    assert set(UNTRAINED) == set(Untrained)


def test_distinct_actions_are_counted_by_why() -> None:
    found = UntrainedActions()
    live = make_call(0, mode=Mode.live)
    failed = make_call(1, mode=Mode.val, outcome=CallOutcome.upstream_error)
    assert [found.add(call) for call in (live, make_call(2), live, failed)] == [
        True,
        False,
        True,
        True,
    ]
    assert found.counts() == {"live": 1}
