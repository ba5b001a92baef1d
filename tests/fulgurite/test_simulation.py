"""Any schedule ends where the undisturbed one does: reordering, delays, duplicates, crashes and
restarts at every step, by the thousand.

Three ways: what belongs together in time, to the byte; with calls, ends and rewards that may come
late, up to the last revision; and in any order whatever, as a function of the set of events.
`FULGURITE_SIMULATION_SCHEDULES` says how many, at the rate of 4 : 4 : 2 (100000 take a busy core
half an hour). A schedule is a string of bytes; what fails is shrunk to the shortest.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.enums import FilterReason, LedgerTerm, StatusKind
from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.episodes.stitching import Input, stitch
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    DeadLetter,
    Episode,
    Event,
    GroupClosed,
    LedgerEntry,
    LlmCall,
    Tombstone,
    Trajectory,
)
from fulgurite.failures import FailureKind
from fulgurite.groups.group_revisions import RevisionLog, revision_of
from fulgurite.groups.group_state import GroupState
from fulgurite.groups.rewards import counted
from fulgurite.ids import episode_id
from fulgurite.ledger.balance import balance
from fulgurite.ledger.model import Balance, Sources
from tests.fulgurite.simulated.deployment import Deployment
from tests.fulgurite.simulated.learner import Learner
from tests.fulgurite.simulated.reward_worker import NAME as JUDGED
from tests.fulgurite.simulated.reward_worker import verdict
from tests.fulgurite.simulated.world import (
    CALLS,
    DEAD,
    EPISODES,
    LEDGER,
    REWARDS,
    STATUS,
    TRAJECTORIES,
    UPDATES,
    World,
    topic_of,
)
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status, rollout_id

# Coverage's tracer makes a schedule take five times as long.
pytestmark = pytest.mark.no_cover

SCHEDULES = int(os.environ.get("FULGURITE_SIMULATION_SCHEDULES", "1000"))


def _sources() -> tuple[tuple[LlmCall | AgentStatus | AgentReward, ...], ...]:
    """Three groups, and traffic that nobody declared.

    What a source says comes in its order; between sources there is none, but that a group is
    declared first.
    """
    first = (
        make_declared(0, 2, max_attempts=2, credit="gigpo(gamma=0.9)"),
        make_call(0, 0, 0, at=1_000),
        make_status(
            0, 0, StatusKind.failed, at=1_100, failure=FailureKind.infrastructure, will_retry=True
        ),
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
    third = (
        make_declared(1, 2, expected=("reward", "step"), credit="step"),
        by_step,
        make_status(1, 0, at=1_400),
    )
    # Never says that it is done: the verdict comes at the deadline.
    silent = (
        make_call(1, 1, 0, at=1_000),
        make_call(1, 1, 1, at=1_100, prompt=(1, 2, 3, 7, 9, 4), answers=[None]),
    )
    steps = (
        make_reward(1, 0, 0.5),
        make_reward(1, 0, 0.25, name="step", call_id=by_step.call_id, choice=0),
        make_reward(1, 1, 1.0),
        make_reward(1, 1, 0.0, name="step"),
    )
    # One is never heard of, one is never paid.
    fourth = (make_declared(2, 3), make_call(2, 0, 0, at=1_500), make_status(2, 0, at=1_600))
    unpaid = (make_call(2, 1, 0, at=1_500), make_status(2, 1, at=1_600), make_reward(2, 0, 1.0))
    # Undeclared: nobody says that it is over but silence.
    live = (make_call(4, 0, 0, at=1_000), make_call(4, 0, 1, at=1_100), make_reward(4, 0, 1.0))
    return first, second, paid, third, silent, steps, fourth, unpaid, live


SOURCES = _sources()

_DECLARED_BY = {1: 0, 2: 0, 4: 3, 5: 3, 7: 6}


class Result(NamedTuple):
    """What counts of a run."""

    episodes: dict[str, Episode]
    rows: dict[str, Event]
    entries: dict[str, Event]
    outcomes: dict[str, tuple[LedgerTerm, str | None]]


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
    """The last revision of each episode, all rows and tombstones, the rewarder's entries, and what
    became of each action.
    """
    ledger = [
        record for record in distinct(world.log[LEDGER]).values() if isinstance(record, LedgerEntry)
    ]
    outcomes: dict[str, tuple[LedgerTerm, str | None]] = {}
    for entry in ledger:
        for action in entry.actions:
            assert action not in outcomes
            outcomes[action] = (entry.term, entry.reason)
    check_closings(world)
    return Result(
        episodes_of(world),
        distinct(event for event in world.log[TRAJECTORIES] if not isinstance(event, GroupClosed)),
        {entry.event_id: entry for entry in ledger if entry.source == "rewarder"},
        outcomes,
    )


def check_closings(world: World) -> None:
    """Every `GroupClosed` comes after what it names, follows the one that it supersedes, and names
    inputs that give just that again.
    """
    episodes = {
        event.revision: event for event in world.log[EPISODES] if isinstance(event, Episode)
    }
    rewards = {
        event.event_id: event for event in world.log[REWARDS] if isinstance(event, AgentReward)
    }
    entries = {event.event_id: event for event in world.log[LEDGER]}
    rows: dict[str, Event] = {}
    last: dict[str, str] = {}
    begun: dict[str, str] = {}
    for event in world.log[TRAJECTORIES]:
        assert isinstance(event, Trajectory | Tombstone | GroupClosed)
        begun[event.group_id] = event.group_revision
        if not isinstance(event, GroupClosed):
            rows[event.event_id] = event
            continue
        assert event.supersedes == last.get(event.group_id)
        last[event.group_id] = event.group_revision
        gathered = GroupState()
        named = [
            *(episodes[revision] for revision in event.episode_revisions),
            *(rewards[name] for name in event.reward_ids),
        ]
        for one in named:
            gathered.add(one)
        outputs = gathered.close(event.group_id, FailureRules())
        assert outputs == (
            *(entries[name] for name in event.entry_ids),
            *(rows[name] for name in event.row_ids),
        )
        assert gathered.closed(outputs, event.supersedes) == event
    assert begun == last, "what was begun last is closed"


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
        dead_letters=entries(DEAD),
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
    assert found.outcomes == expected.outcomes
    assert not [action for action, times in Counter(world.trained).items() if times > 1]
    assert {
        action for action, (term, _) in found.outcomes.items() if term is LedgerTerm.trained
    } == set(world.trained)
    closed = books(world)
    assert (closed.remainder, closed.discrepancies, closed.overdue, closed.expired) == (
        0,
        (),
        (),
        0,
    )
    assert not [term for term in closed.terms if term.startswith("open")]
    assert closed.actions == len(found.outcomes)


def test_the_undisturbed_run_has_everything_in_it() -> None:
    deployment = run(b"")
    check(deployment.world)
    expected = undisturbed()
    assert len(expected.episodes) == 9
    assert {episode.failure for episode in expected.episodes.values()} == {
        None,
        FailureKind.infrastructure,
        FailureKind.truncated,
        FailureKind.agent_timeout,
        FailureKind.agent_silent,
    }
    assert {reason or term for term, reason in expected.outcomes.values()} == {
        "trained",
        "superseded",
        "truncated",
        "no_tokens",
        "no_reward",
        "no_baseline",
    }


LONG = st.integers(0, 1_000).flatmap(lambda size: st.binary(min_size=size, max_size=size))
"""Of any length: left to itself hypothesis draws a handful of bytes, with which nobody crashes at a
place that matters.
"""


@settings(max_examples=SCHEDULES // 2)
@given(LONG)
def test_any_schedule_ends_where_the_undisturbed_one_does(schedule: bytes) -> None:
    check(run(schedule).world)


def judged_sources() -> tuple[tuple[LlmCall | AgentStatus, ...], ...]:
    """A group that a reward worker pays, in time or not: every revision of an episode anew."""
    first = (
        make_declared(3, 2, expected=(JUDGED,)),
        make_call(3, 0, 0, at=1_500),
        make_status(3, 0, at=1_600),
    )
    return first, (make_call(3, 1, 0, at=1_500), make_status(3, 1, at=1_600))


def amending_events() -> tuple[LlmCall | AgentStatus | AgentReward, ...]:
    """What may come late, or change what was said: calls after the end, another end, rewards that
    are taken back and given again.
    """
    return (
        make_call(1, 0, 5, at=1_350),
        make_status(2, 0, StatusKind.failed, at=1_700, failure=FailureKind.agent_exception),
        # Before the end that was known: the attempt was to be tried again.
        make_status(
            0, 1, StatusKind.failed, at=1_290, failure=FailureKind.upstream_error, will_retry=True
        ),
        make_call(0, 1, 9, attempt=1, at=1_400, answers=[(7,)]),
        make_status(0, 1, attempt=1, at=1_500),
        make_reward(0, 0, 0.25, at=5_000),
        make_reward(0, 0, 1.0, at=6_000),
        make_reward(1, 0, None, at=5_000),
        make_reward(1, 0, 0.5, at=6_000),
        make_reward(1, 1, 1.0, at=5_000, final=False),
        make_reward(2, 1, None, at=5_000),
        make_reward(2, 1, 0.0, at=6_000),
        make_reward(2, 1, None, at=7_000),
        make_call(3, 0, 1, at=1_550),
        make_call(3, 0, 2, at=1_560),
        make_status(3, 1, StatusKind.failed, at=1_590, failure=FailureKind.agent_exception),
        make_call(4, 0, 2, at=1_200),
    )


def of_everything(world: World) -> tuple[dict[str, Episode], dict[str, str | None]]:
    """Each attempt's episode and each group's revision, as functions of the set of events that the
    log holds.
    """
    events = [
        event
        for event in (*world.log[CALLS], *world.log[STATUS])
        if isinstance(event, LlmCall | AgentStatus)
    ]
    declared = {event.group_id: event for event in events if event.rollout_id is None}
    inputs: dict[str, list[Input]] = {}
    for event in events:
        if event.rollout_id is not None:
            own = inputs.setdefault(episode_id(event.rollout_id, event.attempt), [])
            own += [
                event,
                *(declared[event.group_id] for _ in range(not own and event.group_id in declared)),
            ]
    episodes = {name: stitch(events) for name, events in inputs.items()}
    groups = {event.group_id: GroupState() for event in events}
    for event in (*episodes.values(), *world.log[REWARDS]):
        if isinstance(event, Episode | AgentReward):
            groups[event.group_id].add(event)
    revisions = {
        group_id: revision_of(group.close(group_id, FailureRules()))
        for group_id, group in groups.items()
    }
    return {name: episode for name, episode in episodes.items() if episode is not None}, revisions


def newest_revisions(world: World) -> dict[str, str | None]:
    """Of each group, as the log tells."""
    groups: dict[str, RevisionLog] = {}
    for event in world.log[TRAJECTORIES]:
        assert isinstance(event, Trajectory | Tombstone | GroupClosed)
        groups.setdefault(event.group_id, RevisionLog()).add(event)
    assert all(written.newest == written.closed for written in groups.values())
    return {group_id: written.newest for group_id, written in groups.items()}


def check_anew(world: World) -> None:
    """What holds when groups are re-closed."""
    check_closings(world)
    episodes, revisions = of_everything(world)
    assert episodes_of(world) == episodes
    assert newest_revisions(world) == revisions
    assert max(Counter(world.trained).values(), default=0) <= 1
    closed = books(world)
    assert (closed.remainder, closed.discrepancies, closed.overdue, closed.expired) == (
        0,
        (),
        (),
        0,
    )
    assert not [term for term in closed.terms if term.startswith("open")]
    assert closed.terms.get("trained", 0) + closed.terms.get("amended", 0) == len(world.trained)
    judged = [
        event
        for event in world.log[REWARDS]
        if isinstance(event, AgentReward) and event.name == JUDGED
    ]
    for episode in episodes.values():
        own = counted(episode, judged)
        if own and not episode.will_retry:
            assert own == (verdict(episode),)
    learner = Learner(world)
    while learner.step(0):
        pass
    assert learner.waits_for_nothing()


def test_what_comes_after_everything_was_trained_amends_and_trains_nothing() -> None:
    deployment = run(b"", Deployment([*SOURCES, *judged_sources()], _DECLARED_BY))
    before = list(deployment.world.trained)
    for event in amending_events():
        deployment.world.append(topic_of(event), event)
        deployment.settle()
        check_anew(deployment.world)
    assert deployment.world.trained == before
    assert books(deployment.world).terms.keys() >= {
        "amended",
        "filtered(late)",
        "filtered(superseded)",
        "filtered(no_baseline)",
    }
    stones = [
        event.reason for event in deployment.world.log[TRAJECTORIES] if isinstance(event, Tombstone)
    ]
    assert {FilterReason.no_reward, FilterReason.reward_failed} <= set(stones)


def amending() -> Deployment:
    """The undisturbed run's sources, a group that is judged, and what comes late if the schedule
    says so.
    """
    sources = [*SOURCES, *judged_sources()]
    first: dict[str, int] = {}
    for place, source in enumerate(sources):
        first.setdefault(source[0].group_id, place)
    later = [(event,) for event in amending_events()]
    after = {place: first[source[0].group_id] for place, source in enumerate([*sources, *later])}
    return Deployment([*sources, *later], after)


@cache
def in_the_end() -> dict[str, str | None]:
    """Each group's last revision where nothing came late."""
    return newest_revisions(run(b"", amending()).world)


@settings(max_examples=SCHEDULES // 2)
@given(LONG)
def test_whatever_comes_late_the_last_revisions_are_those_of_a_run_in_which_nothing_did(
    schedule: bytes,
) -> None:
    world = run(schedule, amending()).world
    check_anew(world)
    assert newest_revisions(world) == in_the_end()


def poisoned() -> Deployment:
    """The undisturbed run's sources, with a group one of whose attempts cannot be stitched, and one
    that cannot be closed.
    """
    own = (
        (
            make_declared(5, 2),
            make_call(5, 0, 0, at=1_000),
            make_call(5, 0, 1, at=1_010),
            make_status(5, 0, at=1_100),
        ),
        (
            make_call(5, 1, 0, at=1_000),
            make_status(5, 1, at=1_100),
            make_call(5, 1, 1, at=1_050),
            make_reward(5, 1, 1.0),
        ),
        (make_call(5, 0, 2, at=1_090), make_reward(5, 0, 1.0)),
        (
            make_declared(6, 2),
            make_call(6, 0, 0, at=1_000),
            make_status(6, 0, at=1_100),
            make_reward(6, 0, 1.0),
        ),
        (make_call(6, 1, 0, at=1_000), make_status(6, 1, at=1_100), make_reward(6, 1, 0.5)),
    )
    first = len(SOURCES)
    after = {**_DECLARED_BY, first + 1: first, first + 2: first, first + 4: first + 3}
    return Deployment([*SOURCES, *own], after, poison=frozenset([rollout_id(5, 0), group_id(6)]))


def check_poisoned(world: World) -> None:
    """Innocents are as in the undisturbed run, and what is lost is accounted for."""
    others = {group_id(5), group_id(6)}
    found, expected = result_of(world), undisturbed()
    assert {
        name: episode for name, episode in found.episodes.items() if episode.group_id not in others
    } == expected.episodes
    for ours, theirs in ((found.rows, expected.rows), (found.entries, expected.entries)):
        assert {
            name: event
            for name, event in ours.items()
            if getattr(event, "group_id", None) not in others
        } == theirs
    lost = [
        action
        for event in world.log[DEAD]
        if isinstance(event, DeadLetter)
        for action in event.actions
    ]
    calls = {event.call_id: event for event in world.log[CALLS] if isinstance(event, LlmCall)}
    assert {action.partition("#")[0] for action in lost} == {
        call_id
        for call_id, call in calls.items()
        if call.rollout_id == rollout_id(5, 0) or call.group_id == group_id(6)
    }
    closed = books(world)
    assert (closed.remainder, closed.discrepancies, closed.overdue, closed.expired) == (
        0,
        (),
        (),
        0,
    )
    assert closed.terms["dead_lettered"] == len(set(lost)) == 5
    assert not [term for term in closed.terms if term.startswith("open")]
    committed = {(name, topic): len(world.log[topic]) for name, topic in world.committed}
    assert dict(world.committed) == committed, "nothing is read again for ever"


def test_what_cannot_be_handled_is_a_dead_letter_and_harms_nobody_else() -> None:
    check_poisoned(run(b"", poisoned()).world)


@settings(max_examples=SCHEDULES // 4)
@given(LONG)
def test_in_any_schedule_innocents_are_as_if_nothing_had_been_poisoned(schedule: bytes) -> None:
    check_poisoned(run(schedule, poisoned()).world)


def lawless() -> Deployment:
    """Everything in any order, once its group is declared; time passes whatever has not come."""
    said = [
        event for source in (*SOURCES, *judged_sources(), amending_events()) for event in source
    ]
    declared = [
        event for event in said if isinstance(event, AgentStatus) and event.declaration is not None
    ]
    others = [event for event in said if event not in declared]
    groups = {event.group_id: place for place, event in enumerate(declared)}
    after = {
        place: groups[event.group_id]
        for place, event in enumerate(others, len(declared))
        if event.group_id in groups
    }
    return Deployment([(event,) for event in (*declared, *others)], after, lawless=True)


@settings(max_examples=SCHEDULES // 4)
@given(LONG)
def test_in_whatever_order_the_log_holds_them_groups_are_all_their_inputs_and_no_action_is_trained_twice(
    schedule: bytes,
) -> None:
    check_anew(run(schedule, lawless()).world)
