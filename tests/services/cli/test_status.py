"""What `fulgurite status` says of the ledger."""

from __future__ import annotations

import msgspec

from fulgurite.enums import FilterReason, LedgerTerm
from fulgurite.events import LedgerEntry
from services.cli.status import outcome_of


def test_outcomes_are_named_by_term_and_reason_and_offline_training_apart() -> None:
    trained = LedgerEntry(
        event_id="e", event_time=1, policy="policy", group_id="g", term=LedgerTerm.trained, source="learner",
    )  # fmt: skip
    filtered = msgspec.structs.replace(
        trained, term=LedgerTerm.filtered, reason=FilterReason.no_signal
    )
    offline = msgspec.structs.replace(trained, source="offline")
    assert [outcome_of(entry) for entry in (trained, filtered, offline)] == [
        "trained",
        "filtered(no_signal)",
        "trained(offline)",
    ]
