"""What `fulgurite status` says of the ledger."""

from __future__ import annotations

import io

import msgspec

from fulgurite.enums import FilterReason, LedgerTerm
from fulgurite.events import LedgerEntry
from services.cli.status import Status, outcome_of, show
from services.common.runtime.terminal import EscapingConsole


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


def test_what_is_never_trained_is_said_in_words() -> None:
    written = io.StringIO()
    found = Status(
        endpoints={"gateway": "ok"},
        layout="ok",
        topics=[],
        groups=[],
        served=[],
        services=[],
        policies=[],
        actions={"trained": 1, "filtered(no_tokens)": 4},
        untrained={"live": 3, "no_policy": 2},
    )
    show(found, EscapingConsole(file=written, width=300, highlight=False))
    said = written.getvalue()
    assert "no_tokens: the upstream gave no token ids" in said
    assert "Of the newest calls, 3 actions are recorded and not trained: live traffic" in said
    assert "2 actions are recorded and not trained: mode train, but no trained policy" in said
