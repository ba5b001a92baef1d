"""A newer revision of a settled group trains nothing, and is told to the ledger once."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import FilterReason, LedgerTerm
from fulgurite.events import LedgerEntry, Position, Trajectory
from fulgurite.learning.amendments import accounts_of, amended_entries
from fulgurite.learning.batching import BatchRules, RowBatcher, ledger_entries
from tests.fulgurite.learning.test_batching import NOW, ONE_GROUP, action, row


def revision(group: str, number: int, *, late: str | None = None) -> list[Trajectory]:
    """Two rows of a group's revision; `late`: an action that came late."""
    made = [row(group, 0, float(number)), row(group, 1, 0.0)]
    if late is not None:
        made[1] = msgspec.structs.replace(made[1], actions=(*made[1].actions, action(late)))
    names = {"group_revision": f"{group}-{number}"}
    return [
        msgspec.structs.replace(
            r, event_id=f"{r.event_id}-{number}", trajectory_id=f"{r.event_id}-{number}", **names
        )
        for r in made
    ]


def feed(batcher: RowBatcher, rows: list[Trajectory], at: int = 0) -> int:
    for offset, made in enumerate(rows, at):
        batcher.add(0, offset, made)
    return at + len(rows)


def test_before_it_is_settled_the_newest_revision_counts() -> None:
    batcher = RowBatcher("policy", ONE_GROUP)
    end = feed(batcher, [*revision("g1", 1), revision("g1", 2)[0]])
    assert batcher.next_batch(NOW) == (), "the newer one is not whole yet"
    assert [position.offset for position in batcher.positions()] == [0], (
        "a resumed learner is to find the older one, too"
    )
    feed(batcher, revision("g1", 2)[1:], end)
    (group,) = batcher.next_batch(NOW)
    assert (group.group_revision, group.rewards) == ("g1-2", (2.0, 0.0))
    assert batcher.amendments() == ()
    assert [position.offset for position in batcher.positions()] == [4]


def test_a_settled_group_is_amended_and_not_trained_again() -> None:
    batcher = RowBatcher("policy", ONE_GROUP)
    end = feed(batcher, revision("g1", 1))
    entries = list(ledger_entries(batcher.next_batch(NOW), NOW, 1))
    first, second = revision("g1", 2, late="late")
    batcher.add(0, end, first)
    assert batcher.amendments() == ()
    batcher.add(0, end + 1, second)
    assert batcher.next_batch(NOW, partial=True) == ()
    (held,) = batcher.amendments()
    assert [position.offset for position in batcher.positions()] == [end]
    amended, late = amended_entries(held, accounts_of(entries), NOW, 2)
    assert (amended.term, amended.actions) == (LedgerTerm.amended, ("g1-0-0#0", "g1-1-0#0"))
    assert (late.term, late.reason, late.actions) == (
        LedgerTerm.filtered,
        FilterReason.late,
        ("late#0",),
    )
    assert amended.group_revision == late.group_revision == "g1-2"
    batcher.amend(held)
    assert batcher.amendments() == ()
    assert [position.offset for position in batcher.positions()] == [end + 2]
    feed(batcher, [first, second], end + 2)
    assert batcher.amendments() == (), "it comes again"
    feed(batcher, revision("g1", 3, late="late"), end + 4)
    (held,) = batcher.amendments()
    (again,) = amended_entries(held, accounts_of([*entries, amended, late]), NOW, 3)
    assert (again.term, again.actions) == (amended.term, amended.actions)


def test_a_revision_that_is_given_up_for_the_one_accounted_for_amends_nothing() -> None:
    batcher = RowBatcher("policy", ONE_GROUP)
    end = feed(batcher, revision("g1", 1))
    batcher.next_batch(NOW)
    end = feed(batcher, [revision("g1", 2)[0], *revision("g1", 1)], end)
    assert batcher.amendments() == ()
    assert [position.offset for position in batcher.positions()] == [end], "nothing is waited for"
    end = feed(batcher, [*revision("g1", 2), *revision("g1", 3)[:1], *revision("g1", 2)], end)
    (held,) = batcher.amendments()
    assert held.group_revision == "g1-2"
    batcher.amend(held)
    feed(batcher, revision("g1", 1), end)
    (held,) = batcher.amendments()
    assert held.group_revision == "g1-1", "back to what it was"


def test_what_was_not_trained_stays_what_it_was() -> None:
    batcher = RowBatcher("policy", ONE_GROUP)
    end = feed(
        batcher,
        [
            msgspec.structs.replace(
                made,
                episode_reward=0.0,
                actions=tuple(msgspec.structs.replace(one, credit=0.0) for one in made.actions),
            )
            for made in revision("g1", 1)
        ],
    )
    entries = list(ledger_entries(batcher.without_signal(NOW), NOW, 1))
    assert {entry.reason for entry in entries} == {FilterReason.no_signal}
    feed(batcher, revision("g1", 2), end)
    (held,) = batcher.amendments()
    assert amended_entries(held, accounts_of(entries), NOW, 2) == ()


@given(st.integers(0, 2**32))
def test_amendments_are_told_once_over_kills(seed: int) -> None:
    chance = random.Random(seed)
    streams = [
        [
            revision(f"g{g}", n, late=f"late{g}" if n > 1 else None)
            for n in range(1, 2 + chance.randrange(3))
        ]
        for g in range(4)
    ]
    log: list[Trajectory] = []
    while any(streams):
        log += chance.choice([stream for stream in streams if stream]).pop(0)
    batcher = RowBatcher("policy", BatchRules(groups_per_step=2))
    ledger: dict[str, LedgerEntry] = {}
    saved: tuple[tuple[Position, ...], dict[str, tuple[int, int]]] = ((), {})
    told = 0
    offset = 0
    while offset < len(log):
        batcher.add(0, offset, log[offset])
        offset += 1
        groups = batcher.next_batch(NOW, partial=offset == len(log))
        if groups or (batcher.amendments() and (offset == len(log) or chance.random() < 0.5)):
            entries = list(ledger_entries(groups, NOW, offset))
            for held in batcher.amendments():
                mine = [entry for entry in ledger.values() if entry.group_id == held.group_id]
                entries += amended_entries(held, accounts_of(mine), NOW, offset)
                batcher.amend(held)
            if chance.random() < 0.8:
                saved = (batcher.positions(), batcher.settled())
                told += len(entries)
                ledger |= {entry.event_id: entry for entry in entries}
                assert len(ledger) == told, "nothing is told twice"
                if chance.random() < 0.7:
                    continue
            batcher = RowBatcher("policy", BatchRules(groups_per_step=2))
            batcher.restore(
                *saved, {entry.group_id: entry.group_revision for entry in ledger.values()}
            )
            offset = saved[0][0].offset if saved[0] else 0
    trained = [
        name
        for entry in ledger.values()
        if entry.term is LedgerTerm.trained
        for name in entry.actions
    ]
    assert len(trained) == len(set(trained))
    assert {made.group_id for made in log} == {entry.group_id for entry in ledger.values()}
    newest = {made.group_id: made.group_revision for made in log}
    for group_id, last in newest.items():
        mine = [entry for entry in ledger.values() if entry.group_id == group_id]
        assert last in {entry.group_revision for entry in mine}, (
            "the newest revision is accounted for"
        )
