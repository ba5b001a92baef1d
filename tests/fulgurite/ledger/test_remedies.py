"""Every reason for which an action is not trained has words for it."""

from __future__ import annotations

from fulgurite.enums import FilterReason
from fulgurite.ledger.remedies import REMEDIES, frequent_remedies


def test_every_reason_has_a_remedy() -> None:
    assert set(REMEDIES) == set(FilterReason)


def test_the_most_frequent_reasons_come_first() -> None:
    terms = {
        "trained": 9,
        "filtered(superseded)": 8,
        "filtered(no_reward)": 2,
        "filtered(no_signal)": 5,
        "filtered(late)": 1,
        "filtered(frozen)": 0,
    }
    assert frequent_remedies(terms, 2) == [
        ("no_signal", REMEDIES[FilterReason.no_signal]),
        ("no_reward", REMEDIES[FilterReason.no_reward]),
    ]
    assert len(frequent_remedies(terms, 9)) == 3
