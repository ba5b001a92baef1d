"""What the ledger says of an action: a learner's word is final, a closing's until the next."""

from __future__ import annotations

import msgspec

from fulgurite.enums import FilterReason, LedgerTerm, UpdateKind
from fulgurite.events import LedgerEntry, PolicyUpdate
from fulgurite.ledger.outcomes import ActionOutcomes, word_of


def entry(term: LedgerTerm, source: str, reason: FilterReason | None = None) -> LedgerEntry:
    return LedgerEntry(
        event_id=f"{term}{source}{reason}", event_time=1, policy="policy", group_id="gr", term=term, reason=reason, actions=("a#0",),
        source=source,
    )  # fmt: skip


def test_a_learners_entry_wins_and_a_later_one_replaces_an_earlier_one() -> None:
    outcomes = ActionOutcomes()
    assert outcomes.of("a#0") is None
    for given, word in (
        (entry(LedgerTerm.filtered, "rewarder", FilterReason.no_reward), "no_reward"),
        (entry(LedgerTerm.trained, "learner"), "trained"),
        (entry(LedgerTerm.filtered, "rewarder", FilterReason.late), "trained"),
        (entry(LedgerTerm.amended, "learner"), "amended"),
    ):
        assert outcomes.add(given)
        found = outcomes.of("a#0")
        assert found is not None
        assert word_of(found) == word


def test_offline_training_and_learners_of_a_replay_decide_nothing() -> None:
    outcomes = ActionOutcomes()
    claim = PolicyUpdate(
        event_id="claim", event_time=1, policy="policy", kind=UpdateKind.claim, epoch=1, step=0, learner_id="l", trained_actions=0,
    )  # fmt: skip
    outcomes.on_update(claim)
    assert not outcomes.add(entry(LedgerTerm.trained, "offline"))
    outcomes.on_update(msgspec.structs.replace(claim, topic="trajectories.v2"))
    assert not outcomes.add(entry(LedgerTerm.trained, "learner"))
    assert outcomes.add(entry(LedgerTerm.filtered, "rewarder", FilterReason.late))
    assert outcomes.of("a#0") is not None


def test_a_filter_without_a_reason_is_named_by_its_term() -> None:
    assert word_of(entry(LedgerTerm.filtered, "rewarder")) == "filtered"
