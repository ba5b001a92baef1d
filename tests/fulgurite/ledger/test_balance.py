"""The books balance whatever state each group is in, and a lost event shows. See
docs/reference/ledger.md for what cannot show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.avro.codec import Codec
from fulgurite.enums import CallOutcome, FilterReason, LedgerTerm, Mode, TrainingUse, UpdateKind
from fulgurite.episodes.exclusions import ExclusionRule
from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.episodes.stitching import stitch
from fulgurite.events import (
    DeadLetter,
    Episode,
    Event,
    EventStruct,
    LedgerEntry,
    LlmCall,
    PolicyUpdate,
    Position,
    Trajectory,
)
from fulgurite.groups.closing import close_group
from fulgurite.groups.group_revisions import group_closed
from fulgurite.ids import action_id, derive_id
from fulgurite.learning.offline import OFFLINE
from fulgurite.ledger.balance import (
    DEAD,
    GRACE_MS,
    LIVE_MS,
    OPEN_EPISODE,
    OPEN_GROUP,
    OPEN_LEARNER,
    balance,
)
from fulgurite.ledger.model import Balance, Sources
from fulgurite.trajectories.building import successful_actions
from tests.synthetic import make_call, make_declared, make_reward, make_status, rollout_id

CODEC = Codec()
DEADLINE = 10_000
TOPICS = ("updates", "dead_letters", "ledger", "trajectories", "episodes", "statuses", "calls")


class Located(EventStruct, frozen=True):
    """A record of a topic."""

    partition: int
    offset: int
    event: Event | None


class Stage(Enum):
    """How far a group has come."""

    called = 0
    ended = 1
    closed = 2
    trained = 3
    filtered = 4
    stale = 5
    amended = 6
    unrewarded = 7


class World:
    """Topics with two partitions, filled as the services would."""

    def __init__(self) -> None:
        self.topics: dict[str, list[Located]] = {name: [] for name in TOPICS}
        self.steps = 0

    def put(self, topic: str, partition: int, *events: Event) -> None:
        for event in events:
            offset = sum(record.partition == partition for record in self.topics[topic])
            self.topics[topic].append(Located(partition, offset, event))

    def add_group(
        self,
        number: int,
        stage: Stage,
        turns: int = 2,
        policies: Sequence[str] = ("policy",),
        rules: FailureRules | None = None,
    ) -> None:
        """`policies`: take turns in answering, each in a role of its name."""
        partition = number % 2
        declared = make_declared(number, 2, deadline=DEADLINE)
        self.put("statuses", partition, declared)
        episodes: list[Episode] = []
        for index in range(2):
            answers = [[7, 9], [8, 9]]
            calls = [
                make_call(
                    number,
                    index,
                    turn,
                    prompt=[1, turn],
                    answers=answers,
                    at=1_000 + turn,
                    agent=policies[turn % len(policies)],
                    policy=policies[turn % len(policies)],
                )
                for turn in range(turns)
            ]
            self.put(
                "calls",
                partition,
                *calls,
                make_call(number, index, 9, outcome=CallOutcome.upstream_error),
            )
            episode = stitch([declared, *calls, make_status(number, index)])
            assert episode is not None
            episodes.append(episode)
        if stage is Stage.called:
            return
        self.put("episodes", partition, *episodes)
        if stage is Stage.ended:
            return
        rewards = (
            []
            if stage is Stage.unrewarded
            else [make_reward(number, index, float(index)) for index in range(2)]
        )
        outputs = close_group(declared.group_id, declared.declaration, episodes, rewards, rules)
        self.put(
            "ledger", partition, *(event for event in outputs if isinstance(event, LedgerEntry))
        )
        closed = group_closed(outputs, episodes, rewards, None)
        assert closed is not None
        self.put(
            "trajectories",
            partition,
            *(event for event in outputs if not isinstance(event, LedgerEntry)),
            closed,
        )
        if stage.value < Stage.trained.value or stage is Stage.unrewarded:
            return
        rows = [event for event in outputs if isinstance(event, Trajectory)]
        actions = sorted(
            {action_id(a.call_id, a.choice) for row in rows for a in row.actions if a.loss}
        )
        self.steps += 1
        if stage is Stage.amended:
            self.settle(partition, declared.group_id, actions, LedgerTerm.trained)
        self.settle(
            partition,
            declared.group_id,
            actions,
            LedgerTerm.trained if stage is Stage.trained else LedgerTerm[stage.name],
        )

    def settle(self, partition: int, group: str, actions: Sequence[str], term: LedgerTerm) -> None:
        reason = FilterReason.no_signal if term is LedgerTerm.filtered else None
        entry = LedgerEntry(
            event_id=derive_id(group, term, self.steps), event_time=1, policy="policy", group_id=group, term=term, reason=reason,
            actions=tuple(actions), version=f"policy@1.{self.steps}", source="learner",
        )  # fmt: skip
        self.put("ledger", partition, entry)

    def learn(self, *positions: int) -> None:
        """The learner's updates so far; positions by partition."""
        common = {
            "event_time": 1,
            "policy": "policy",
            "epoch": 1,
            "learner_id": "me",
            "trained_actions": 0,
        }
        claim = PolicyUpdate(event_id="claim", kind=UpdateKind.claim, step=0, **common)  # pyright: ignore[reportArgumentType]
        low = tuple(
            Position(partition=number, offset=offset) for number, offset in enumerate(positions)
        )
        update = PolicyUpdate(event_id="u", kind=UpdateKind.update, step=1, positions=low, **common)  # pyright: ignore[reportArgumentType]
        self.put("updates", 0, claim, update)

    def dead_letter(
        self, partition: int, value: bytes | None, actions: tuple[str, ...] = ()
    ) -> None:
        letter = DeadLetter(
            event_id=derive_id("dead", partition, len(self.topics["dead_letters"])), event_time=1, stage="test", error_type="E", error="e",
            topic="t", partition=partition, offset=0, value=value, actions=actions,
        )  # fmt: skip
        self.put("dead_letters", partition, letter)

    def read_position(self) -> tuple[int, int]:
        """A learner that has read everything."""
        rows = self.topics["trajectories"]
        return (sum(r.partition == 0 for r in rows), sum(r.partition == 1 for r in rows))

    def balance(
        self,
        now_ms: int = 0,
        until: dict[int, int] | None = None,
        without: tuple[str, int] | None = None,
    ) -> Balance:
        topics: dict[str, Iterable[Located]] = dict(self.topics)
        if without is not None:
            topic, index = without
            topics[topic] = [record for at, record in enumerate(self.topics[topic]) if at != index]
        return balance(Sources(**topics), CODEC.decode, now_ms, until)


ACTIONS = 8
"""Of a group: two rollouts, two turns, two choices."""

EXPECTED = {
    Stage.called: OPEN_EPISODE,
    Stage.ended: OPEN_GROUP,
    Stage.closed: OPEN_LEARNER,
    Stage.trained: "trained",
    Stage.filtered: "filtered(no_signal)",
    Stage.stale: "stale",
    Stage.amended: "amended",
    Stage.unrewarded: "filtered(no_reward)",
}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(Stage), max_size=6))
def test_every_action_is_in_exactly_one_term(stages: list[Stage]) -> None:
    world = World()
    for number, stage in enumerate(stages):
        world.add_group(number, stage)
    books = world.balance()
    wanted: dict[str, int] = {}
    for stage in stages:
        wanted[EXPECTED[stage]] = wanted.get(EXPECTED[stage], 0) + ACTIONS
    assert books.terms == wanted
    assert books.actions == ACTIONS * len(stages) == sum(wanted.values())
    assert (books.remainder, books.discrepancies, books.expired) == (0, (), 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(Stage), min_size=1, max_size=4))
def test_actions_of_a_frozen_policy_wait_for_no_learner(stages: list[Stage]) -> None:
    world = World()
    rules = FailureRules(frozen=frozenset({"critic"}))
    for number, stage in enumerate(stages):
        world.add_group(number, stage, policies=("policy", "critic"), rules=rules)
    books = world.balance()
    assert books.remainder == 0
    terms = {
        term
        for account in books.accounts
        if account.policy == "critic"
        for term, count in account.terms.items()
        if count
    }
    unclosed = {EXPECTED[stage] for stage in stages if stage in (Stage.called, Stage.ended)}
    unrewarded = {EXPECTED[stage] for stage in stages if stage is Stage.unrewarded}
    others = set(stages) - {Stage.called, Stage.ended, Stage.unrewarded}
    assert terms == unclosed | unrewarded | ({"filtered(frozen)"} if others else set())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(Stage), min_size=1, max_size=4))
def test_actions_of_excluded_calls_have_their_reason_whatever_becomes_of_the_group(
    stages: list[Stage],
) -> None:
    world = World()
    rules = FailureRules(exclusions=(ExclusionRule(agent="title"),))
    for number, stage in enumerate(stages):
        world.add_group(number, stage, policies=("policy", "title"), rules=rules)
    books = world.balance()
    assert (books.remainder, books.discrepancies) == (0, ())
    counted = {
        policy: {
            term
            for account in books.accounts
            if account.policy == policy
            for term, count in account.terms.items()
            if count
        }
        for policy in ("policy", "title")
    }
    unclosed = {EXPECTED[stage] for stage in stages if stage in (Stage.called, Stage.ended)}
    closed = set(stages) - {Stage.called, Stage.ended}
    assert counted["title"] == unclosed | ({"filtered(excluded)"} if closed else set())
    assert counted["policy"] == {EXPECTED[stage] for stage in stages}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(Stage), min_size=1, max_size=4), st.data())
def test_the_balance_does_not_depend_on_order_or_duplicates(
    stages: list[Stage], data: st.DataObject
) -> None:
    world = World()
    for number, stage in enumerate(stages):
        world.add_group(number, stage)
    books = world.balance()
    for name, records in world.topics.items():
        twice = (
            records + data.draw(st.lists(st.sampled_from(records), max_size=3))
            if records
            else records
        )
        world.topics[name] = data.draw(st.permutations(twice)) if name != "updates" else twice
    assert world.balance() == books


def settled_world() -> World:
    """One group of every settled kind, and a learner that has read them all."""
    world = World()
    for number, stage in enumerate(
        (Stage.trained, Stage.filtered, Stage.stale, Stage.unrewarded, Stage.trained)
    ):
        world.add_group(number, stage)
    world.learn(*world.read_position())
    return world


def places(world: World, *topics: str) -> list[tuple[str, int]]:
    return [(topic, index) for topic in topics for index in range(len(world.topics[topic]))]


@pytest.mark.parametrize("place", places(settled_world(), "episodes", "ledger"), ids=str)
def test_a_lost_episode_or_ledger_entry_of_settled_groups_shows(place: tuple[str, int]) -> None:
    world = settled_world()
    assert world.balance().remainder == 0
    books = world.balance(without=place)
    assert books.remainder > 0
    assert books.discrepancies


def test_a_lost_call_of_settled_groups_shows_unless_it_carried_no_action() -> None:
    world = settled_world()
    for topic, index in places(world, "calls"):
        call = world.topics["calls"][index].event
        assert isinstance(call, LlmCall)
        # The very first record of a partition looks as if retention had taken it.
        books = world.balance(without=(topic, index))
        seen = books.remainder + (books.expired if world.topics["calls"][index].offset == 0 else 0)
        assert (seen > 0) == (call.outcome is CallOutcome.success)


def test_a_lost_row_shows_as_long_as_the_learner_has_not_read_it() -> None:
    world = World()
    world.add_group(0, Stage.closed)
    *rows, closed = places(world, "trajectories")
    assert len(rows) > 1
    assert all(world.balance(without=place).remainder > 0 for place in rows)
    assert world.balance(without=closed) == world.balance()


def test_what_cannot_show() -> None:
    """Documented in docs/reference/ledger.md; if one of these begins to show, say so there."""
    world = settled_world()
    for place in places(world, "statuses", "trajectories", "updates"):
        assert world.balance(without=place).remainder == 0
    young = World()
    young.add_group(0, Stage.ended)
    assert all(young.balance(without=place).remainder == 0 for place in places(young, "episodes"))


def test_an_action_trained_twice_shows() -> None:
    world = World()
    world.add_group(0, Stage.trained)
    entry = world.topics["ledger"][-1].event
    assert isinstance(entry, LedgerEntry)
    again = msgspec.structs.replace(
        entry, event_id="again", version="policy@1.7", actions=entry.actions[:2]
    )
    world.put("ledger", 0, again)
    books = world.balance()
    assert books.remainder == 2
    assert [problem.terms for problem in books.discrepancies] == [("trained", "trained")] * 2


def test_what_a_policy_learns_from_a_replay_is_no_part_of_the_live_books() -> None:
    world = World()
    world.add_group(0, Stage.trained)
    world.learn(*world.read_position())
    entry, claim = world.topics["ledger"][-1].event, world.topics["updates"][0].event
    assert isinstance(entry, LedgerEntry)
    assert isinstance(claim, PolicyUpdate)
    world.put(
        "updates",
        0,
        msgspec.structs.replace(
            claim, event_id="c", policy="mine", config='{"topic": "trajectories.v2"}'
        ),
    )
    world.put(
        "ledger",
        0,
        msgspec.structs.replace(entry, event_id="other", policy="mine", version="mine@1.1"),
    )
    books = world.balance()
    assert (books.remainder, books.terms) == (0, {"trained": ACTIONS})


@pytest.mark.parametrize("stage", [*EXPECTED])
def test_what_is_trained_offline_stays_in_its_term_and_is_counted_beside_it(stage: Stage) -> None:
    world = World()
    world.add_group(0, Stage.trained)
    world.learn(*world.read_position())
    world.add_group(2, stage)
    before = world.balance()
    update = world.topics["updates"][-1].event
    assert isinstance(update, PolicyUpdate)
    group = make_declared(2, 2).group_id
    actions = [
        name
        for record in world.topics["calls"]
        if isinstance(record.event, LlmCall) and record.event.group_id == group
        for name in successful_actions(record.event)
    ]
    for step in (7, 8):
        # The learner's position stays what it was.
        offline = msgspec.structs.replace(
            update,
            event_id=f"offline {step}",
            step=step,
            topic="trajectories.v2",
            offline_method="sft",
        )
        entry = LedgerEntry(
            event_id=f"offline entry {step}", event_time=1, policy="policy", group_id=group, term=LedgerTerm.trained,
            actions=tuple(actions), version=f"policy@1.{step}", source=OFFLINE,
        )  # fmt: skip
        world.put("updates", 0, offline)
        world.put("ledger", 0, entry)
    after = world.balance()
    assert (after.remainder, after.terms) == (0, before.terms)
    assert (before.offline_actions, after.offline_actions) == (0, ACTIONS)


def test_dead_letters_are_counted_wherever_they_died() -> None:
    world = World()
    world.add_group(0, Stage.called)
    world.add_group(2, Stage.ended)
    world.add_group(4, Stage.closed)
    world.add_group(6, Stage.trained)
    dead = (
        world.topics["calls"][0],
        world.topics["episodes"][0],
        world.topics["trajectories"][0],
        world.topics["calls"][-2],
    )
    for record in dead:
        assert record.event is not None
        world.dead_letter(record.partition, CODEC.encode(record.event))
    first = world.topics["calls"][1].event
    assert isinstance(first, LlmCall)
    named = action_id(first.call_id, 0)
    world.dead_letter(0, None, (named,))
    world.dead_letter(0, b"poison")
    world.dead_letter(0, CODEC.encode(make_reward(0)))
    world.put("dead_letters", 0, make_call(99))
    books = world.balance()
    row = dead[2].event
    assert isinstance(row, Trajectory)
    assert books.remainder == 0
    assert books.terms[DEAD] == 2 + 1 + 4 + sum(action.loss for action in row.actions)
    assert books.terms["trained"] == ACTIONS, "a redriven action counts where it went"


def test_only_the_learners_position_tells_what_it_has_still_to_do() -> None:
    world = World()
    world.add_group(0, Stage.closed)
    world.learn(len(world.topics["trajectories"]), 0)
    books = world.balance()
    assert books.remainder == ACTIONS, (
        "the learner claims to have read these rows and accounts for none"
    )


def test_a_count_up_to_an_offset_leaves_out_both_sides() -> None:
    world = World()
    world.add_group(0, Stage.trained)
    world.add_group(2, Stage.trained)
    half = sum(r.partition == 0 for r in world.topics["calls"]) // 2
    books = world.balance(until={0: half})
    assert (books.actions, books.terms, books.remainder) == (ACTIONS, {"trained": ACTIONS}, 0)
    assert [account.until for account in books.accounts] == [half]


def test_what_retention_took_is_told_and_not_held_against_anyone() -> None:
    world = World()
    world.add_group(0, Stage.trained)
    world.add_group(2, Stage.trained)
    half = len(world.topics["calls"]) // 2
    world.topics["calls"] = world.topics["calls"][half:]
    books = world.balance()
    assert (books.actions, books.remainder, books.expired) == (ACTIONS, 0, ACTIONS)


def test_an_entry_for_an_action_that_nobody_took_shows() -> None:
    world = World()
    world.add_group(0, Stage.trained)
    world.settle(0, "gr", ["nobody#0"], LedgerTerm.stale)
    books = world.balance()
    assert books.remainder == 1
    assert (books.discrepancies[0].action, books.discrepancies[0].has_call) == ("nobody#0", False)


@pytest.mark.parametrize(
    ("stage", "overdue"),
    [(Stage.called, ACTIONS), (Stage.ended, ACTIONS), (Stage.closed, 0), (Stage.trained, 0)],
)
def test_open_past_its_deadline_is_flagged(stage: Stage, overdue: int) -> None:
    world = World()
    world.add_group(0, stage)
    assert len(world.balance(now_ms=DEADLINE + GRACE_MS).overdue) == 0
    assert len(world.balance(now_ms=DEADLINE + GRACE_MS + 1).overdue) == overdue


def test_only_successful_train_mode_actions_of_a_policy_count() -> None:
    world = World()
    world.put(
        "calls",
        0,
        make_call(0, mode=Mode.val),
        make_call(1, mode=Mode.live),
        make_call(2, policy=None),
    )
    world.topics["calls"].append(Located(1, 0, None))
    row = Trajectory(
        event_id="t", event_time=1, trajectory_id="t", group_id="g", rollout_id=rollout_id(0, 0), attempt=0, mode=Mode.live, policy=None,
        episode_revision="e", group_revision="g", row_index=0, rows_in_episode=1, group_size=1, group_members_scored=1, group_started_at=1,
        token_ids=b"", credit_rule="identical",
    )  # fmt: skip
    world.put("trajectories", 0, row)
    books = world.balance()
    assert (books.actions, books.accounts, books.terms) == (0, (), {})
    assert books.untrained == {"val": 1, "live": 1, "no_policy": 1}


def test_a_policy_that_no_learner_was_started_for_is_named() -> None:
    world = World()
    world.add_group(0, Stage.called)
    assert world.balance().without_learner == ()
    world.add_group(2, Stage.closed)
    assert world.balance().without_learner == ("policy",)
    world.learn(0, 0)
    assert world.balance().without_learner == ()


def test_a_claim_alone_is_no_position() -> None:
    world = World()
    world.add_group(0, Stage.closed)
    world.learn(9, 9)
    world.topics["updates"] = world.topics["updates"][:1]
    world.put("updates", 0, make_call(5))
    assert world.balance().terms == {OPEN_LEARNER: ACTIONS}


def test_what_does_not_belong_into_a_topic_is_passed_by() -> None:
    world = World()
    for topic in ("ledger", "trajectories", "episodes", "statuses"):
        world.put(topic, 0, make_call(1))
    world.put("statuses", 0, make_status(0))
    world.add_group(0, Stage.called)
    undeclared = stitch([make_call(3), make_status(3)])
    assert undeclared is not None
    world.put("episodes", 0, undeclared)
    assert world.balance().terms == {OPEN_EPISODE: ACTIONS}


def test_live_rollouts_are_told_and_are_no_part_of_the_books() -> None:
    calls = [
        make_call(0, index, turn, mode=mode)
        for index, mode in enumerate((Mode.live, Mode.live, Mode.val))
        for turn in range(2)
    ]
    entries = [Located(0, offset, call) for offset, call in enumerate(calls)]
    books = balance(
        Sources(
            updates=(),
            dead_letters=(),
            ledger=(),
            trajectories=(),
            episodes=(),
            statuses=(),
            calls=entries,
        ),
        CODEC.decode,
        0,
    )
    assert (books.actions, books.live_rollouts, books.remainder) == (0, 2, 0)
    assert books.untrained == {"live": 4, "val": 2}


def test_a_call_that_was_delivered_twice_counts_once() -> None:
    world = World()
    untrained = [make_call(0, mode=Mode.val), make_call(1, mode=Mode.live)]
    world.put("calls", 0, *untrained, make_call(2), *untrained, make_call(2))
    books = world.balance()
    assert books.untrained == {"val": 1, "live": 1}
    assert (books.actions, books.live_rollouts) == (1, 1)


def test_a_live_action_that_is_opted_in_is_open_for_a_day_before_it_is_overdue() -> None:
    world = World()
    call = make_call(0, mode=Mode.live, use=TrainingUse.live)
    world.put("calls", 0, call, make_call(0, turn=1, mode=Mode.live))
    due = call.finished_at + LIVE_MS + GRACE_MS
    books = world.balance(now_ms=due)
    assert (books.terms, books.untrained, books.overdue) == ({OPEN_EPISODE: 1}, {"live": 1}, ())
    assert world.balance(now_ms=due + 1).overdue == (action_id(call.call_id, 0),)
