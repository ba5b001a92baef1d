"""A batch that teaches nothing says why, and what to do; rows that are too long are told beside
what is trained.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import FilterReason, LedgerTerm
from fulgurite.learning.batching import BatchGroup
from services.learner.algorithms import ALGORITHMS
from services.learner.explaining import misplaced_rule, shortcomings

Outcome = tuple[LedgerTerm, FilterReason | None]
TRAINED: Outcome = (LedgerTerm.trained, None)
OVERSIZED: Outcome = (LedgerTerm.filtered, FilterReason.oversized)


def batch(*outcomes: Outcome) -> list[BatchGroup]:
    """One group with an action of each outcome."""
    named = {f"action{number}": outcome for number, outcome in enumerate(outcomes)}
    return [
        BatchGroup(
            group_id="g",
            group_revision="r",
            policy="policy",
            rewards=(),
            episodes=(),
            outcomes=named,
        )
    ]


@pytest.mark.parametrize(
    "reason", [reason for reason in FilterReason if reason is not FilterReason.oversized]
)
def test_a_batch_that_teaches_nothing_says_why(reason: FilterReason) -> None:
    [line] = shortcomings(batch((LedgerTerm.filtered, reason), (LedgerTerm.filtered, reason)), 4096)
    assert line.startswith(f"0 of 2 actions of 1 groups are trained: 2 {reason}; {reason}: ")


def test_rows_that_are_too_long_are_told_beside_what_is_trained() -> None:
    assert shortcomings(batch(TRAINED, OVERSIZED), 64) == [
        "1 of 2 actions are in rows longer than batch.max_row_tokens = 64 and are not trained "
        "(oversized): raise it, or keep conversations shorter"
    ]


def test_stale_actions_and_groups_without_any_are_told() -> None:
    assert "1 stale" in shortcomings(batch((LedgerTerm.stale, None)), 64)[0]
    assert "the groups have no actions" in shortcomings(batch(), 64)[0]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([LedgerTerm.stale, LedgerTerm.filtered]),
            st.sampled_from([*FilterReason, None]),
        ),
        max_size=9,
    )
)
def test_what_trains_something_is_no_warning(others: list[Outcome]) -> None:
    lines = shortcomings(batch(TRAINED, *others), 64)
    assert bool(lines) is (OVERSIZED in others)


@pytest.mark.parametrize(
    ("algorithm", "lone", "has_baseline", "is_told"),
    [
        ("grpo", False, True, False),
        ("rloo", False, True, False),
        ("reinforce++", False, False, False),
        ("grpo", True, False, False),
        ("reinforce++", False, True, True),
        ("grpo", True, True, True),
    ],
)
def test_a_rule_with_a_baseline_of_its_own_is_told_where_groups_are_compared_with_others(
    algorithm: str, *, lone: bool, has_baseline: bool, is_told: bool
) -> None:
    groups = [
        *batch(TRAINED),
        *(
            msgspec.structs.replace(group, is_lone=lone, rule_has_baseline=has_baseline)
            for group in batch(TRAINED)
        ),
    ]
    line = misplaced_rule(groups, ALGORITHMS[algorithm])
    assert (line is not None) is is_told
    assert line is None or "group g has a credit rule with a baseline of its own" in line
