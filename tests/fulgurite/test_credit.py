"""The worked examples of the credit rules' docstrings, and the registry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.credit import RULES, credit_rule
from fulgurite.errors import UnknownRule

REWARDS = st.lists(st.floats(-10, 10), min_size=1, max_size=6)


def test_identical() -> None:
    assert credit_rule("identical")(1.0, [0.0, 0.25, 0.0], 1.25) == [1.25, 1.25, 1.25]


def test_step() -> None:
    assert credit_rule("step")(1.0, [0.5, 0.25, 0.0], 1.75) == [1.75, 1.25, 1.0]


@given(REWARDS, st.floats(-10, 10))
def test_the_first_action_gets_the_whole_reward_under_every_rule(rewards: list[float], outcome: float) -> None:
    total = outcome + sum(rewards)
    for rule in RULES.values():
        gains = rule(outcome, rewards, total)
        assert len(gains) == len(rewards)
        assert gains[0] == pytest.approx(total, abs=1e-9)


def test_unknown_rules_are_named() -> None:
    with pytest.raises(UnknownRule, match=r"no credit rule 'magic'; there are identical, step"):
        credit_rule("magic")
