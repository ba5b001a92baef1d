"""Any schedule ends where the undisturbed one does: reordering, delays, duplicates, crashes and restarts at every step, by the thousand.

`FULGURITE_SIMULATION_SCHEDULES` says how many (100000 takes a core some ten minutes). A schedule is a string of bytes; what fails is
shrunk to the shortest.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.books import Balance, Sources
from fulgurite.events import AgentReward, AgentStatus, Episode, Event, LedgerEntry, LlmCall
from fulgurite.failures import FailureKind
from fulgurite.ids import episode_id
from fulgurite.kinds import LedgerTerm, StatusKind
from fulgurite.ledger import balance
from fulgurite.stitching import Input, stitch
from tests.fulgurite.simulation import CALLS, EPISODES, LEDGER, STATUS, TRAJECTORIES, UPDATES, Deployment, World
from tests.synthetic import make_call, make_declared, make_reward, make_status

SCHEDULES = int(os.environ.get("FULGURITE_SIMULATION_SCHEDULES", "2000"))


def _sources() -> tuple[tuple[LlmCall | AgentStatus | AgentReward, ...], ...]:
    """Three groups. What a source says comes in its order; between sources there is none, but that a group is declared first."""
    first = (
        make_declared(0, 2, max_attempts=2, credit="gigpo(gamma=0.9)"),
        make_call(0, 0, 0, at=1_000),
        make_status(0, 0, StatusKind.failed, at=1_100, failure=FailureKind.infrastructure, will_retry=True),
        make_call(0, 0, 1, attempt=1, at=1_200, answers=[(7, 9)]),
        make_call(0, 0, 2, attempt=1, at=1_210, prompt=(1, 2, 3, 7, 9, 5), answers=[(4,), (6,)]),
        make_status(0, 0, attempt=1, at=1_300),
    )
    # Tried again: the first answer is superseded. Two roles, one of which was cut.
    second = (
        make_call(0, 1, 0, at=1_000, answers=[(7,)]),
        make_call(0, 1, 1, at=1_010, answers=[(8,)]),
        make_call(0, 1, 2, at=1_020, prompt=(1, 2, 3, 8, 3), answers=[(9,)]),
        make_call(0, 1, 3, at=1_030, prompt=(5,), answers=[(5,)], agent="critic", finish="length"),
        make_status(0, 1, at=1_300),
    )
    paid = (make_reward(0, 0, 1.0), make_reward(0, 1, 0.25))
    by_step = make_call(1, 0, 0, at=1_000)
    third = (make_declared(1, 2, expected=("reward", "step"), credit="step"), by_step, make_status(1, 0, at=1_400))
    # Never says that it is done: the verdict comes at the deadline.
    silent = (make_call(1, 1, 0, at=1_000), make_call(1, 1, 1, at=1_100, prompt=(1, 2, 3, 7, 9, 4), answers=[None]))
    steps = (
        make_reward(1, 0, 0.5),
        make_reward(1, 0, 0.25, name="step", call_id=by_step.call_id, choice=0),
        make_reward(1, 1, 1.0),
        make_reward(1, 1, 0.0, name="step"),
    )
    # One is never heard of, one is never paid.
    fourth = (make_declared(2, 3), make_call(2, 0, 0, at=1_500), make_status(2, 0, at=1_600))
    unpaid = (make_call(2, 1, 0, at=1_500), make_status(2, 1, at=1_600), make_reward(2, 0, 1.0))
    return first, second, paid, third, silent, steps, fourth, unpaid


SOURCES = _sources()

_DECLARED_BY = {1: 0, 2: 0, 4: 3, 5: 3, 7: 6}


class Result(NamedTuple):
    """What counts of a run."""

    episodes: dict[str, Episode]
    rows: dict[str, Event]
    entries: dict[str, Event]
    fates: dict[str, tuple[LedgerTerm, str | None]]


def distinct(records: Iterable[Event]) -> dict[str, Event]:
    """By id; a record that comes again must be the same."""
    found: dict[str, Event] = {}
    for record in records:
        assert found.setdefault(record.event_id, record) == record
    return found


def episodes_of(world: World) -> dict[str, Episode]:
    """The last revision of each."""
    episodes: dict[str, Episode] = {}
    for record in distinct(world.log[EPISODES]).values():
        assert isinstance(record, Episode)
        held = episodes.get(record.episode_id)
        if held is None or set(record.inputs) > set(held.inputs):
            episodes[record.episode_id] = msgspec.structs.replace(record, supersedes=None)
    return episodes


def result_of(world: World) -> Result:
    """The last revision of each episode, all rows and tombstones, the rewarder's entries, and what became of each action."""
    ledger = [record for record in distinct(world.log[LEDGER]).values() if isinstance(record, LedgerEntry)]
    fates: dict[str, tuple[LedgerTerm, str | None]] = {}
    for entry in ledger:
        for action in entry.actions:
            assert action not in fates
            fates[action] = (entry.term, entry.reason)
    return Result(
        episodes_of(world),
        distinct(world.log[TRAJECTORIES]),
        {entry.event_id: entry for entry in ledger if entry.source == "rewarder"},
        fates,
    )


class Entry(NamedTuple):
    """A record, as the ledger reads it."""

    partition: int
    offset: int
    event: Event | None


def books(world: World) -> Balance:
    """The ledger over the world's log."""

    def entries(topic: str) -> list[Entry]:
        return [Entry(0, offset, event) for offset, event in enumerate(world.log[topic])]

    sources = Sources(
        updates=entries(UPDATES),
        dead_letters=[],
        ledger=entries(LEDGER),
        trajectories=entries(TRAJECTORIES),
        episodes=entries(EPISODES),
        statuses=entries(STATUS),
        calls=entries(CALLS),
    )
    return balance(sources, lambda _: make_call(), now_ms=10**9)


def run(schedule: bytes, deployment: Deployment | None = None) -> Deployment:
    """A schedule, two bytes a move, and then rest."""
    deployment = deployment or Deployment(SOURCES, _DECLARED_BY)
    for move, choice in zip(schedule[::2], schedule[1::2], strict=False):
        deployment.act(move, choice)
    deployment.settle()
    return deployment


@cache
def undisturbed() -> Result:
    """Everything lands in order and is processed without a hitch."""
    return result_of(run(b"").world)


def check(world: World) -> None:
    """What every schedule must end with."""
    found, expected = result_of(world), undisturbed()
    assert found.episodes == expected.episodes
    assert found.rows == expected.rows
    assert found.entries == expected.entries
    assert found.fates == expected.fates
    assert not [action for action, times in Counter(world.trained).items() if times > 1]
    assert {action for action, (term, _) in found.fates.items() if term is LedgerTerm.trained} == set(world.trained)
    closed = books(world)
    assert (closed.remainder, closed.discrepancies, closed.overdue, closed.expired) == (0, (), (), 0)
    assert not [term for term in closed.terms if term.startswith("open")]
    assert closed.actions == len(found.fates)


def test_the_undisturbed_run_has_everything_in_it() -> None:
    deployment = run(b"")
    check(deployment.world)
    expected = undisturbed()
    assert len(expected.episodes) == 8
    assert {episode.failure for episode in expected.episodes.values()} == {
        None,
        FailureKind.infrastructure,
        FailureKind.truncated,
        FailureKind.agent_timeout,
        FailureKind.agent_silent,
    }
    assert {reason or term for term, reason in expected.fates.values()} == {
        "trained",
        "superseded",
        "truncated",
        "no_tokens",
        "no_reward",
        "no_baseline",
    }


LONG = st.integers(0, 1_000).flatmap(lambda size: st.binary(min_size=size, max_size=size))
"""Of any length: left to itself hypothesis draws a handful of bytes, with which nobody crashes at a place that matters."""


@settings(max_examples=SCHEDULES)
@given(LONG)
def test_any_schedule_ends_where_the_undisturbed_one_does(schedule: bytes) -> None:
    check(run(schedule).world)


def lawless() -> Deployment:
    """Everything in any order, once its group is declared: calls after the end, an end after the verdict, two ends of one attempt."""
    more = (make_call(1, 0, 5, at=1_350), make_status(2, 0, StatusKind.failed, at=1_700, failure=FailureKind.agent_exception))
    said = [event for source in (*SOURCES, more) for event in source]
    declared = [event for event in said if isinstance(event, AgentStatus) and event.declaration is not None]
    others = [event for event in said if event not in declared]
    groups = {event.group_id: place for place, event in enumerate(declared)}
    after = {place: groups[event.group_id] for place, event in enumerate(others, len(declared))}
    return Deployment([(event,) for event in (*declared, *others)], after, lawless=True)


@settings(max_examples=SCHEDULES // 4)
@given(LONG)
def test_in_whatever_order_the_log_holds_them_an_episode_is_all_its_inputs_and_no_action_is_trained_twice(schedule: bytes) -> None:
    world = run(schedule, lawless()).world
    inputs: dict[str, list[Input]] = {}
    events = [event for event in (*world.log[CALLS], *world.log[STATUS]) if isinstance(event, LlmCall | AgentStatus)]
    declared = {event.group_id: event for event in events if event.rollout_id is None}
    for event in events:
        if event.rollout_id is not None:
            inputs.setdefault(episode_id(event.rollout_id, event.attempt), [declared[event.group_id]]).append(event)
    assert episodes_of(world) == {name: stitch(events) for name, events in inputs.items()}
    assert max(Counter(world.trained).values(), default=0) <= 1
