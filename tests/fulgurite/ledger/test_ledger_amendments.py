"""The books over groups that are re-closed: at every moment, every action is in exactly one term."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fulgurite.enums import LedgerTerm, StatusKind, UpdateKind
from fulgurite.episodes.stitching import Input, stitch, supersede
from fulgurite.events import (
    AgentReward,
    Episode,
    GroupClosed,
    LedgerEntry,
    LlmCall,
    PolicyUpdate,
    Position,
    Tombstone,
    Trajectory,
)
from fulgurite.failures import FailureKind
from fulgurite.groups.closing import close_group
from fulgurite.groups.group_revisions import ClosingRecord, group_closed
from fulgurite.ids import action_id
from fulgurite.learning.amendments import accounts_of, amended_entries
from fulgurite.learning.batching import BatchRules, RowBatcher, ledger_entries
from fulgurite.ledger.balance import (
    GRACE_MS,
    OPEN_AMENDMENT,
    OPEN_EPISODE,
    OPEN_GROUP,
    OPEN_LEARNER,
)
from fulgurite.ledger.model import Balance
from fulgurite.versions import Version
from tests.fulgurite.ledger.test_balance import DEADLINE, World
from tests.synthetic import make_call, make_declared, make_reward, make_status

SIZE = 3
DECLARED = make_declared(0, SIZE, deadline=DEADLINE, max_attempts=2)
VERSION = Version("policy", 1, 1)
ACTIONS = 2 * SIZE


def calls(index: int) -> list[LlmCall]:
    return [
        make_call(0, index, turn, prompt=(1, turn, index), at=1_000 + turn) for turn in range(3)
    ]


def inputs(index: int) -> list[Input]:
    return [DECLARED, *calls(index)[:2], make_status(0, index)]


def on_time(index: int) -> Episode:
    episode = stitch(inputs(index))
    assert episode is not None
    return episode


def revised(index: int) -> Episode:
    """With a call that came late."""
    late = stitch([*inputs(index), calls(index)[2]])
    assert late is not None
    episode = supersede(on_time(index), late)
    assert episode is not None
    return episode


class Books(World):
    """One group, closed again and again; every record is followed by a count."""

    def __init__(self, *rollouts: int) -> None:
        super().__init__()
        self.put("statuses", 0, DECLARED)
        self.put("calls", 0, *(call for index in range(SIZE) for call in calls(index)[:2]))
        self.known: dict[int, Episode] = {}
        self.batcher = RowBatcher("policy", BatchRules(groups_per_step=1))
        self.read = 0
        self.closed = False
        for index in rollouts:
            self.end(index, on_time(index))

    def count(self) -> Balance:
        books = self.balance()
        assert books.remainder == 0, books.discrepancies
        assert sum(books.terms.values()) == books.actions
        return books

    def end(self, index: int, episode: Episode) -> None:
        self.known[index] = episode
        self.put("episodes", 0, episode)
        self.count()

    def late_call(self, index: int) -> None:
        self.put("calls", 0, calls(index)[2])

    def close_with(self, *rewards: AgentReward, upto: int | None = None) -> None:
        outputs = close_group(DECLARED.group_id, DECLARED.declaration, self.known.values(), rewards)
        closed = group_closed(outputs, self.known.values(), rewards, None)
        ordered: list[ClosingRecord] = [*outputs, *([closed] if closed else [])]
        for output in ordered[:upto]:
            self.put("ledger" if isinstance(output, LedgerEntry) else "trajectories", 0, output)
            if self.closed:
                self.count()
        self.closed = True

    def step(self) -> None:
        """The learner reads everything, settles what it can, and says how far it is."""
        for record in self.topics["trajectories"][self.read :]:
            assert isinstance(record.event, Trajectory | Tombstone | GroupClosed)
            self.batcher.add(0, record.offset, record.event)
        self.read = len(self.topics["trajectories"])
        entries = list(ledger_entries(self.batcher.next_batch(VERSION), VERSION, 1))
        told = [
            r.event
            for r in self.topics["ledger"]
            if isinstance(r.event, LedgerEntry) and r.event.source == "learner"
        ]
        for held in self.batcher.amendments():
            entries += amended_entries(held, accounts_of(told), VERSION, 1)
            self.batcher.amend(held)
        common: dict[str, Any] = {
            "event_time": 1,
            "policy": "policy",
            "epoch": 1,
            "learner_id": "me",
            "trained_actions": 0,
        }
        self.steps += 1
        places = tuple(
            Position(partition=p.partition, offset=p.offset) for p in self.batcher.positions()
        )
        claim = PolicyUpdate(event_id="claim", kind=UpdateKind.claim, step=0, **common)
        kind = UpdateKind.update
        update = PolicyUpdate(
            event_id=f"u{self.steps}", kind=kind, step=self.steps, positions=places, **common
        )
        self.put("ledger", 0, *entries)
        self.put("updates", 0, *([claim] if self.steps == 1 else []), update)
        self.count()


def rewards(*values: float | None) -> list[AgentReward]:
    return [make_reward(0, index, value) for index, value in enumerate(values)]


def test_a_late_reward_before_the_learner_comes() -> None:
    books = Books(0, 1, 2)
    books.close_with(*rewards(1.0, 0.0))
    assert books.count().terms == {"filtered(no_reward)": 2, OPEN_LEARNER: 4}
    books.close_with(*rewards(1.0, 0.0, 0.5))
    assert books.count().terms == {OPEN_LEARNER: 6}
    books.step()
    assert books.count().terms == {"trained": 6}


def test_a_late_reward_after_the_learner_has_settled_the_group() -> None:
    books = Books(0, 1, 2)
    books.close_with(*rewards(1.0, 0.0))
    books.step()
    assert books.count().terms == {"filtered(no_reward)": 2, "trained": 4}
    books.close_with(*rewards(1.0, 0.0, 0.5))
    assert books.count().terms == {OPEN_LEARNER: 2, "trained": 4}
    books.step()
    assert books.count().terms == {"filtered(late)": 2, "amended": 4}
    books.close_with(*rewards(1.0, 0.0, None))
    assert books.count().terms == {"filtered(late)": 2, "amended": 4}
    books.step()
    assert books.count().terms == {"filtered(late)": 2, "amended": 4}


def test_a_reward_that_turns_out_to_have_failed() -> None:
    books = Books(0, 1, 2)
    books.close_with(*rewards(1.0, 0.0, 0.5))
    books.close_with(*rewards(1.0, 0.0, None))
    assert books.count().terms == {"filtered(reward_failed)": 2, OPEN_LEARNER: 4}
    books.step()
    books.close_with(*rewards(1.0, None, None))
    assert books.count().terms == {"filtered(reward_failed)": 2, "trained": 4}
    books.step()
    assert books.count().terms == {"filtered(reward_failed)": 2, "amended": 4}


@pytest.mark.parametrize("settled", [False, True])
def test_a_call_that_comes_late(*, settled: bool) -> None:
    books = Books(0, 1, 2)
    books.close_with(*rewards(1.0, 0.0))
    if settled:
        books.step()
    for index in (0, 2):
        books.late_call(index)
        # As in life, a call has no episode's revision for a moment; the aggregator's is at hand
        # here.
        books.end(index, revised(index))
    terms = books.count().terms
    assert terms[OPEN_AMENDMENT] == 2
    assert len(books.balance(now_ms=DEADLINE + GRACE_MS + 1).overdue) == 2
    books.close_with(*rewards(1.0, 0.0))
    assert OPEN_AMENDMENT not in books.count().terms
    books.step()
    late = {"filtered(late)": 1, "amended": 4} if settled else {"trained": 5}
    assert books.count().terms == {"filtered(no_reward)": 3, **late}


def test_another_attempt_that_comes_late() -> None:
    books = Books(0, 1, 2)
    books.close_with(*rewards(1.0, 0.0, 0.5))
    again = make_call(0, 2, 7, attempt=1, at=1_500)
    books.put("calls", 0, again)
    episode = stitch([DECLARED, again, make_status(0, 2, attempt=1)])
    assert episode is not None
    books.put("episodes", 0, episode)
    assert books.count().terms == {OPEN_AMENDMENT: 1, OPEN_LEARNER: 6}


def test_a_replaced_attempt_that_no_entry_accounts_for_shows() -> None:
    books = Books(0, 1)
    retried = stitch(
        [
            DECLARED,
            *calls(2)[:2],
            make_status(0, 2, StatusKind.failed, failure=FailureKind.cancelled, will_retry=True),
        ]
    )
    again = make_call(0, 2, 7, attempt=1, at=1_500)
    last = stitch([DECLARED, again, make_status(0, 2, attempt=1)])
    assert retried is not None
    assert last is not None
    books.put("calls", 0, again)
    books.end(2, last)
    books.end(3, retried)
    books.close_with(*rewards(1.0, 0.0, 0.5))
    assert books.count().terms == {"filtered(superseded)": 2, OPEN_LEARNER: 5}
    books.topics["ledger"] = []
    assert books.balance().remainder == 2


def test_an_episode_that_comes_late() -> None:
    books = Books(0, 1)
    assert books.count().terms == {OPEN_EPISODE: 2, OPEN_GROUP: 4}
    books.close_with(*rewards(1.0, 0.0))
    books.step()
    assert books.count().terms == {OPEN_EPISODE: 2, "trained": 4}
    books.end(2, on_time(2))
    assert books.count().terms == {OPEN_AMENDMENT: 2, "trained": 4}
    books.close_with(*rewards(1.0, 0.0, 0.5))
    books.step()
    assert books.count().terms == {"filtered(late)": 2, "amended": 4}


def test_a_closing_that_is_cut_off_counts_for_nothing_yet() -> None:
    for upto in range(1, 6):
        books = Books(0, 1, 2)
        books.close_with(*rewards(1.0, 0.0))
        before = books.count().terms
        books.close_with(*rewards(1.0, None, 0.5), upto=upto)
        assert books.count().terms == before
        books.step()
        books.close_with(*rewards(1.0, None, 0.5))
        books.step()
        assert OPEN_LEARNER not in books.count().terms


def test_what_two_services_count_under_one_revision_shows() -> None:
    books = Books(0, 1, 2)
    books.close_with(*rewards(1.0, 0.0))
    books.step()
    trained = next(
        r.event
        for r in books.topics["ledger"]
        if isinstance(r.event, LedgerEntry) and r.event.term is LedgerTerm.trained
    )
    entry = next(
        r.event
        for r in books.topics["ledger"]
        if isinstance(r.event, LedgerEntry) and r.event.source == "rewarder"
    )
    books.put(
        "ledger", 0, msgspec.structs.replace(entry, event_id="x", actions=trained.actions[:1])
    )
    assert books.balance().remainder == 1


def test_an_action_that_a_closing_left_out_shows() -> None:
    books = Books(0, 1, 2)
    books.close_with(*rewards(1.0, 0.0, 0.5))
    books.late_call(0)
    books.end(0, revised(0))
    close = close_group(
        DECLARED.group_id, DECLARED.declaration, books.known.values(), rewards(1.0, 0.0, 0.5)
    )
    late = action_id(calls(0)[2].call_id, 0)
    lossless = [
        msgspec.structs.replace(
            output,
            actions=tuple(
                msgspec.structs.replace(a, loss=a.loss and action_id(a.call_id, 0) != late)
                for a in output.actions
            ),
        )
        if isinstance(output, Trajectory)
        else output
        for output in close
    ]
    books.put("trajectories", 0, *lossless)
    assert books.balance().remainder == 1


def test_without_its_rows_the_last_closing_that_the_ledger_names_counts() -> None:
    books = Books(0, 1, 2)
    books.close_with(*rewards(1.0, None))
    books.step()
    books.close_with(*rewards(1.0, 0.0, None))
    books.step()
    books.topics["trajectories"] = []
    books.topics["ledger"] = [
        r
        for r in books.topics["ledger"]
        if isinstance(r.event, LedgerEntry) and r.event.source == "rewarder"
    ]
    # Of the first closing's entries those of the second rollout are superseded by its reward in the
    # second.
    assert books.balance().terms == {"filtered(reward_failed)": 2}
