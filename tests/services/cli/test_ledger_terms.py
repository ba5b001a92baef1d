"""What the ledger says of actions is counted once, with the version that it is about."""

from __future__ import annotations

from fulgurite.enums import FilterReason, LedgerTerm, UpdateKind
from fulgurite.events import LedgerEntry, PolicyUpdate
from services.cli.ledger_terms import LedgerTerms


def make_entry(
    name: str,
    *,
    version: str | None = "policy@1.1",
    term: LedgerTerm = LedgerTerm.trained,
    reason: FilterReason | None = None,
    at: int = 10,
    source: str = "learner",
    actions: int = 2,
) -> LedgerEntry:
    return LedgerEntry(
        event_id=name,
        event_time=at,
        policy="policy",
        group_id="g",
        term=term,
        reason=reason,
        actions=tuple(f"{name}#{number}" for number in range(actions)),
        version=version,
        source=source,
    )


def make_update(step: int) -> PolicyUpdate:
    return PolicyUpdate(
        event_id=f"update {step}",
        event_time=step * 100,
        policy="policy",
        kind=UpdateKind.update,
        epoch=1,
        step=step,
        version=f"policy@1.{step}",
        learner_id="l",
        trained_actions=0,
    )


def test_terms_and_reasons_are_counted_in_actions_each_entry_once() -> None:
    terms = LedgerTerms()
    for entry in (
        make_entry("a"),
        make_entry("a"),
        make_entry("b", term=LedgerTerm.stale, actions=3),
        make_entry("c", term=LedgerTerm.filtered, reason=FilterReason.no_signal),
        make_entry("d", term=LedgerTerm.filtered),
        make_entry("e", source="offline"),
    ):
        terms.add(entry)
    assert terms.take(make_update(1), 200) == {
        "ledger/trained": 2.0,
        "ledger/stale": 3.0,
        "ledger/filtered/no_signal": 2.0,
        "ledger/filtered/unknown": 2.0,
        "ledger/offline": 2.0,
    }
    assert terms.take(make_update(1), 200) == {}


def test_an_entry_without_a_version_counts_with_the_version_of_its_time() -> None:
    terms = LedgerTerms()
    for name, at in (("early", 150), ("late", 250)):
        terms.add(
            make_entry(
                name,
                at=at,
                version=None,
                term=LedgerTerm.filtered,
                reason=FilterReason.no_reward,
            )
        )
    terms.add(make_entry("next", version="policy@1.2"))
    assert terms.take(make_update(1), 200) == {"ledger/filtered/no_reward": 2.0}
    assert terms.take(make_update(2), 300) == {
        "ledger/filtered/no_reward": 2.0,
        "ledger/trained": 2.0,
    }


def test_what_comes_after_its_version_was_taken_is_left_out() -> None:
    terms = LedgerTerms()
    terms.take(make_update(1), 200)
    terms.add(make_entry("a"))
    assert terms.take(make_update(2), 300) == {}
