"""Every reason for which an action is not trained has words for it."""

from __future__ import annotations

from fulgurite.enums import FilterReason
from fulgurite.ledger.remedies import REMEDIES


def test_every_reason_has_a_remedy() -> None:
    assert set(REMEDIES) == set(FilterReason)
