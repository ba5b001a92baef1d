"""Costs are a function of the log: whose they are, what became of the tokens, what is unknown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from fulgurite.avro.codec import Codec
from fulgurite.cost.prices import Money, parse_prices
from fulgurite.cost.table import By, CostSources, CostTable, cost_table
from fulgurite.enums import CallOutcome, FilterReason, LedgerTerm, Mode, UpdateKind
from fulgurite.events import DeadLetter, Event, LedgerEntry, LlmCall, PolicyUpdate
from fulgurite.ids import action_id
from tests.synthetic import group_id, make_call, make_declared

CODEC = Codec()
PRICES = parse_prices(
    "currency = 'EUR'\n[tokens.policy]\ninput = 1e6\ncached_input = 0\noutput = 2e6\n"
    "[learner_per_hour]\npolicy = 3600"
)


def update(step: int, metrics: Mapping[str, float] | None = None, at: int = 5_000) -> PolicyUpdate:
    return PolicyUpdate(
        event_id=f"update{step}", event_time=at, policy="policy", kind=UpdateKind.update, epoch=1, step=step,
        version=f"policy@1.{step}", learner_id="l", trained_actions=1, metrics=dict(metrics or {}),
    )  # fmt: skip


def entry(
    calls: Sequence[LlmCall],
    term: LedgerTerm,
    reason: FilterReason | None = None,
    version: str | None = None,
    source: str = "learner",
) -> LedgerEntry:
    return LedgerEntry(
        event_id=f"{calls[0].call_id}{term}{source}", event_time=1, policy="policy", group_id=calls[0].group_id, term=term, reason=reason,
        actions=tuple(action_id(call.call_id, 0) for call in calls), version=version, source=source,
    )  # fmt: skip


def letter(call: LlmCall, *, named: bool) -> DeadLetter:
    actions = (action_id(call.call_id, 0),) if named else ()
    value = b"?" if named else CODEC.encode(call)
    return DeadLetter(
        event_id="letter", event_time=1, stage="rewarder", error_type="E", error="e", topic="llm.calls", partition=0, offset=0,
        value=value, actions=actions,
    )  # fmt: skip


def table(by: By = By.run, *, priced: bool = True, **topics: Sequence[Event | None]) -> CostTable:
    found = {"updates": (), "dead_letters": (), "ledger": (), "statuses": (), "calls": (), **topics}
    return cost_table(CostSources(**found), CODEC.decode, by, PRICES if priced else None)


def test_an_empty_log_costs_nothing() -> None:
    found = table()
    assert (found.rows, found.total.calls, found.total.money) == ((), 0, Money())


def test_calls_go_to_the_run_that_declared_their_group() -> None:
    calls = [make_call(group) for group in (1, 2, 3)]
    declared = [make_declared(1, run_id="run-a"), make_declared(2)]
    found = table(statuses=[None, *declared], calls=[None, *calls, calls[0]])
    assert [(row.key, row.calls, row.prompt, row.sampled) for row in found.rows] == [
        ("run-a", 1, 3, 2),
        (None, 2, 6, 4),
    ]
    assert (found.total.calls, found.total.sampled) == (3, 6)


@pytest.mark.parametrize(("by", "key"), [(By.alias, "policy"), (By.group, group_id(1))])
def test_calls_go_to_their_alias_or_group(by: By, key: str) -> None:
    assert [row.key for row in table(by, calls=[make_call(1)]).rows] == [key]


def test_tokens_are_trained_discarded_or_open() -> None:
    calls = {
        name: make_call(number)
        for number, name in enumerate(("trained", "stale", "filtered", "named", "inside", "open"))
    }
    ledger = [
        entry([calls["trained"]], LedgerTerm.trained, version="policy@1.1"),
        entry([calls["stale"]], LedgerTerm.stale),
        entry([calls["filtered"]], LedgerTerm.filtered, FilterReason.no_signal),
    ]
    others = [
        make_call(10, mode=Mode.val),
        make_call(11, policy=None),
        make_call(12, outcome=CallOutcome.client_disconnected),
    ]
    total = table(
        ledger=[None, *ledger],
        dead_letters=[None, letter(calls["named"], named=True), letter(calls["inside"], named=False)],
        calls=[*calls.values(), *others],
    ).total  # fmt: skip
    assert (total.sampled, total.trained, total.open) == (18, 2, 2)
    assert total.discarded == {"dead_lettered": 4, "no_signal": 2, "stale": 2}


def test_a_version_has_the_calls_behind_it_and_the_time_of_its_learner() -> None:
    trained, filtered, other = make_call(1), make_call(1, 1), make_call(2)
    found = table(
        By.version,
        updates=[
            None,
            update(10, {"seconds/train": 3.0, "seconds/wait": 1.0, "k3": 9.0}),
            update(9),
            update(10, {"seconds/train": 3.0}, at=6_000),
            msgspec.structs.replace(update(11), kind=UpdateKind.claim, version=None),
        ],
        ledger=[
            entry([trained], LedgerTerm.trained, version="policy@1.10"),
            entry([filtered], LedgerTerm.filtered, FilterReason.late, source="rewarder"),
            entry([other], LedgerTerm.trained, version="odd"),
            entry([other], LedgerTerm.trained, version="policy@1.9", source="offline"),
        ],
        calls=[trained, filtered, other, make_call(3)],
    )
    assert [(row.key, row.calls, row.learner_seconds) for row in found.rows] == [
        ("odd", 1, 0.0),
        ("policy@1.9", 0, 0.0),
        ("policy@1.10", 2, 4.0),
        (None, 1, 0.0),
    ]
    assert [row.updates_of_unknown_seconds for row in found.rows] == [0, 1, 0, 0]
    assert found.rows[2].money == Money(4 + 4 * 2, 4 + 4 * 2 + 6)


def test_elsewhere_the_learners_time_is_a_row_of_its_own_from_a_time_on() -> None:
    updates = [update(1, {"seconds/train": 5.0}, at=10), update(2, {"seconds/train": 7.0})]
    sources = CostSources(updates=updates, dead_letters=(), ledger=(), statuses=(), calls=())
    found = cost_table(sources, CODEC.decode, By.alias, None, since_ms=11)
    assert [(row.key, row.learner_seconds, row.money) for row in found.rows] == [
        ("learner policy", 7.0, None)
    ]


def test_what_is_not_known_is_counted_apart() -> None:
    usage = json.dumps({"usage": {"prompt_tokens_details": {"cached_tokens": 4}}})
    said = msgspec.structs.replace(make_call(1), prompt_tokens=10, response=usage)
    calls = [said, make_call(2), make_call(3, prompt=None, answers=[None])]
    total = table(calls=calls).total
    assert (total.prompt, total.cached, total.not_cached, total.maybe_cached) == (13, 4, 6, 3)
    assert (total.calls_of_unknown_tokens, total.actions_of_unknown_tokens) == (1, 1)
    assert total.money == Money(6 + 2 * 4, 6 + 3 + 2 * 4)


def test_what_has_no_price_is_named() -> None:
    odd = msgspec.structs.replace(make_call(1), alias="writer")
    learner = msgspec.structs.replace(update(1), policy="writer", version="writer@1.1")
    found = table(updates=[learner], calls=[odd, make_call(2)])
    assert found.unpriced == ("learner writer", "writer")
    assert table(calls=[odd], priced=False).total.money is None
    assert table(calls=[odd], priced=False).currency is None
