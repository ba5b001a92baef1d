"""Rows and tombstones → groups → outcomes: no action twice, none forgotten."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import FilterReason, LedgerTerm, Mode
from fulgurite.events import Action, GroupClosed, Position, Tombstone, Trajectory
from fulgurite.groups.credit.types import relative
from fulgurite.groups.rewards import SMALLEST_SPREAD
from fulgurite.learning.batching import (
    BatchGroup,
    BatchRules,
    RowBatcher,
    ledger_entries,
    staleness,
    untrained,
)
from fulgurite.tokens import pack_ids, pack_logprobs
from fulgurite.versions import Version

NOW = Version("policy", 1, 10)
ONE_GROUP = BatchRules(groups_per_step=1)


def action(
    name: str,
    start: int = 2,
    *,
    version: str | None = "policy@1.10",
    loss: bool = True,
    credit: float = 1.0,
) -> Action:
    return Action(
        call_id=name,
        choice=0,
        start=start,
        end=start + 2,
        logprobs=pack_logprobs([-0.5, -0.25]),
        reward=credit,
        credit=credit,
        loss=loss,
        version=version,
        agent="",
        finish_reason="stop",
        temperature=1.0,
    )


def row(
    group: str,
    member: int,
    reward: float | None = 1.0,
    *,
    index: int = 0,
    of: int = 1,
    size: int = 2,
    actions: tuple[Action, ...] | None = None,
) -> Trajectory:
    return Trajectory(
        event_id=f"{group}-{member}-{index}",
        event_time=1,
        trajectory_id=f"{group}-{member}-{index}",
        group_id=group,
        rollout_id=f"{group}-{member}",
        attempt=0,
        mode=Mode.train,
        policy="policy",
        episode_revision="e",
        group_revision=f"{group}-r",
        row_index=index,
        rows_in_episode=of,
        group_size=size,
        group_members_scored=size,
        group_started_at=int(group[1:]),
        token_ids=pack_ids([1, 2, 3, 4]),
        actions=actions
        if actions is not None
        else (action(f"{group}-{member}-{index}", credit=reward or 0.0),),
        episode_reward=reward,
        credit_rule="identical",
    )


def stone(group: str, member: int, reward: float | None = None, *, size: int = 2) -> Tombstone:
    return Tombstone(
        event_id=f"{group}-{member}-t",
        event_time=1,
        group_id=group,
        rollout_id=f"{group}-{member}",
        attempt=0,
        mode=Mode.train,
        policy="policy",
        group_revision=f"{group}-r",
        group_size=size,
        group_members_scored=size - 1,
        group_started_at=int(group[1:]),
        reason=FilterReason.no_tokens,
        episode_reward=reward,
    )


def batcher_with(*events: Trajectory | Tombstone, rules: BatchRules = ONE_GROUP) -> RowBatcher:
    batcher = RowBatcher("policy", rules)
    for offset, event in enumerate(events):
        batcher.add(0, offset, event)
    return batcher


def outcomes(
    *events: Trajectory | Tombstone, rules: BatchRules = ONE_GROUP
) -> dict[str, tuple[LedgerTerm, FilterReason | None]]:
    (group,) = settled(batcher_with(*events, rules=rules))
    return dict(group.outcomes)


def settled(batcher: RowBatcher, current: Version = NOW) -> tuple[BatchGroup, ...]:
    """Everything that is complete."""
    return (*batcher.next_batch(current, partial=True), *batcher.without_signal(current))


def test_a_group_waits_for_every_row_and_every_member() -> None:
    batcher = batcher_with(row("g1", 0, 1.0, index=0, of=2), row("g1", 1, 0.0))
    assert batcher.next_batch(NOW) == ()
    assert batcher.waiting() == 1
    assert batcher.add(0, 2, row("g1", 0, 1.0, index=1, of=2))
    assert batcher.complete() == 1
    (group,) = batcher.next_batch(NOW)
    assert group.rewards == (1.0, 0.0)
    assert [len(episode.rows) for episode in group.episodes] == [2, 1]
    assert {outcome for outcome, _ in group.outcomes.values()} == {LedgerTerm.trained}


def closed(group: str, *row_ids: str, revision: str | None = None) -> GroupClosed:
    return GroupClosed(
        event_id=f"{group}-closed",
        event_time=1,
        group_id=group,
        mode=Mode.train,
        group_revision=revision or f"{group}-r",
        row_ids=row_ids,
    )


def test_a_group_that_is_closed_waits_for_what_its_closing_names() -> None:
    batcher = batcher_with(row("g1", 0, 1.0), row("g1", 1, 0.0))
    assert batcher.complete() == 1, "the closing is still to come"
    names = (row("g1", 0).event_id, row("g1", 1).event_id)
    assert not batcher.add(0, 2, closed("g1", *names, revision="another"))
    assert batcher.add(0, 3, closed("g1", *names, "lost"))
    assert batcher.complete() == 0
    assert batcher.add(0, 4, closed("g1", *names))
    assert [(group.group_id, batcher.settled()) for group in batcher.next_batch(NOW)] == [
        ("g1", {})
    ]
    assert batcher.positions() == (Position(partition=0, offset=5),)
    assert not batcher.add(0, 5, closed("g1", *names)), "it is settled"
    assert not batcher.add(0, 6, closed("g2")), "nothing is known of it"


def test_the_closing_of_an_amendment_is_part_of_it() -> None:
    batcher = batcher_with(row("g1", 0, 1.0), row("g1", 1, 0.0))
    batcher.next_batch(NOW)
    again = [
        msgspec.structs.replace(row("g1", member, 1.0), group_revision="newer") for member in (0, 1)
    ]
    for offset, event in enumerate(
        [*again, closed("g1", *(one.event_id for one in again), revision="newer")], 2
    ):
        assert batcher.add(0, offset, event)
    (held,) = batcher.amendments()
    batcher.amend(held)
    assert (batcher.settled(), held.last_offset, batcher.positions()) == (
        {},
        4,
        (Position(partition=0, offset=5),),
    )


def test_groups_are_admitted_oldest_start_first_and_only_in_full_batches() -> None:
    rules = BatchRules(groups_per_step=2)
    batcher = batcher_with(
        *[row(g, m, float(m)) for g in ("g3", "g1") for m in (0, 1)], rules=rules
    )
    assert [group.group_id for group in batcher.next_batch(NOW)] == ["g1", "g3"]
    for member in (0, 1):
        batcher.add(0, 9 + member, row("g5", member, float(member)))
    assert batcher.next_batch(NOW) == ()
    assert [group.group_id for group in batcher.next_batch(NOW, partial=True)] == ["g5"]
    assert batcher.next_batch(NOW, partial=True) == ()


def test_groups_that_teach_nothing_fill_no_batch_and_wait_for_none() -> None:
    rules = BatchRules(groups_per_step=2)
    batcher = batcher_with(
        row("g1", 0, 1.0),
        row("g1", 1, 1.0),
        row("g2", 0, 1.0),
        row("g2", 1, 0.0),
        rules=rules,
    )
    assert (batcher.complete(), batcher.ready(NOW)) == (2, 1)
    assert batcher.next_batch(NOW) == ()
    (silent,) = batcher.without_signal(NOW)
    assert set(silent.outcomes.values()) == {(LedgerTerm.filtered, FilterReason.no_signal)}
    assert batcher.without_signal(NOW) == ()
    assert (batcher.complete(), batcher.ready(NOW)) == (1, 1)
    assert batcher.ready(Version("policy", 1, 19)) == 0, "all of it is stale by then"
    for offset, member in enumerate((0, 1), 4):
        batcher.add(0, offset, row("g3", member, float(member)))
    assert [group.group_id for group in batcher.next_batch(NOW)] == ["g2", "g3"]


def test_repeated_rows_and_those_of_other_modes_are_no_news() -> None:
    batcher = batcher_with(row("g1", 0, 1.0))
    assert not batcher.add(0, 1, row("g1", 0, 1.0))
    assert not batcher.add(0, 3, msgspec.structs.replace(row("g2", 0), mode=Mode.live))
    batcher.add(0, 4, row("g1", 1, 0.0))
    batcher.next_batch(NOW)
    assert not batcher.add(0, 5, row("g1", 0, 1.0))
    assert batcher.complete() == 0


def of_policy(policy: str | None, event: Trajectory) -> Trajectory:
    return msgspec.structs.replace(event, policy=policy)


WRITER_AND_CRITIC = [
    event
    for member in (0, 1)
    for event in (
        row("g1", member, float(member), index=0, of=2),
        of_policy("critic", row("g1", member, float(member), index=1, of=2)),
    )
]
"""Two episodes, each with a row of this policy and a row of another one."""


@given(
    st.permutations(WRITER_AND_CRITIC),
    st.sampled_from(["policy", "critic"]),
    st.booleans(),
)
def test_a_group_of_two_policies_is_settled_by_the_learner_of_each(
    events: list[Trajectory], policy: str, closing: bool
) -> None:
    batcher = RowBatcher(policy, ONE_GROUP)
    for offset, event in enumerate(events):
        assert settled(batcher) == ()
        assert batcher.add(0, offset, event)
    if closing:
        batcher.add(0, len(events), closed("g1", *(event.event_id for event in events)))
    (group,) = settled(batcher, Version(policy, 1, 10))
    own = {event.event_id for event in events if event.policy == policy}
    assert {action.removesuffix("#0") for action in group.outcomes} == own
    assert group.rewards == (0.0, 1.0)
    assert batcher.positions() == (Position(partition=0, offset=len(events) + closing),)


@pytest.mark.parametrize("other", ["critic", None])
def test_a_row_of_another_policy_keeps_its_episode_in_the_baseline(other: str | None) -> None:
    (group,) = batcher_with(row("g1", 0, 1.0), of_policy(other, row("g1", 1, 0.0))).next_batch(NOW)
    assert group.rewards == (1.0, 0.0)
    assert set(group.outcomes.values()) == {(LedgerTerm.trained, None)}


@pytest.mark.parametrize("closing", [False, True])
def test_a_group_of_another_policy_is_forgotten_when_it_is_complete(closing: bool) -> None:
    events = [of_policy("other", row("g1", member)) for member in (0, 1)]
    batcher = batcher_with(events[0])
    assert batcher.positions() == (Position(partition=0, offset=0),)
    if closing:
        # The closing names more rows than the rule for logs without it would wait for.
        batcher.add(0, 1, closed("g1", *(event.event_id for event in events)))
    batcher.add(0, 2, events[1])
    assert batcher.next_batch(NOW, partial=True) == ()
    assert batcher.positions() == (Position(partition=0, offset=3),)
    (group,) = settled(batcher_with(stone("g1", 0), stone("g1", 1)))
    assert group.outcomes == {}, "nothing of it could be trained, and its runner waits"


def test_a_revision_before_settlement_replaces_the_one_before() -> None:
    batcher = batcher_with(row("g1", 0, 1.0))
    for member in (0, 1):
        batcher.add(
            0,
            1 + member,
            msgspec.structs.replace(row("g1", member, float(member)), group_revision="newer"),
        )
    (group,) = batcher.next_batch(NOW)
    assert group.group_revision == "newer"


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((row("g1", 0, 1.0), stone("g1", 1)), FilterReason.no_baseline),
        ((row("g1", 0, 1.0), row("g1", 1, 1.0)), FilterReason.no_signal),
        ((row("g1", 0, 0.0), row("g1", 1, SMALLEST_SPREAD)), FilterReason.no_signal),
        ((row("g1", 0, None), row("g1", 1, None)), FilterReason.no_reward),
    ],
)
def test_groups_that_teach_nothing_say_why(
    events: tuple[Trajectory | Tombstone, ...], expected: FilterReason
) -> None:
    assert set(outcomes(*events).values()) == {(LedgerTerm.filtered, expected)}


def test_a_tombstone_with_a_reward_stays_in_the_baseline() -> None:
    (group,) = batcher_with(row("g1", 0, 1.0), stone("g1", 1, 0.0)).next_batch(NOW)
    assert group.rewards == (1.0, 0.0)
    assert [episode.rollout_id for episode in group.episodes] == ["g1-0"]


@pytest.mark.parametrize(
    ("odd", "rules", "expected"),
    [
        (
            msgspec.structs.replace(action("x"), mask=FilterReason.truncated),
            ONE_GROUP,
            (LedgerTerm.filtered, FilterReason.truncated),
        ),
        (
            msgspec.structs.replace(action("x"), logprobs=None),
            ONE_GROUP,
            (LedgerTerm.filtered, FilterReason.no_tokens),
        ),
        (
            msgspec.structs.replace(action("x"), logprobs=pack_logprobs([-0.5, math.nan])),
            ONE_GROUP,
            (LedgerTerm.filtered, FilterReason.no_tokens),
        ),
        (
            msgspec.structs.replace(action("x"), logprobs=b"123"),
            ONE_GROUP,
            (LedgerTerm.filtered, FilterReason.no_tokens),
        ),
        *(
            (
                msgspec.structs.replace(action("x"), temperature=value),
                ONE_GROUP,
                (LedgerTerm.filtered, FilterReason.untrainable_sampling),
            )
            for value in (0.0, 1e-30, -1.0, math.inf, math.nan)
        ),
        (
            action("x", credit=math.nan),
            ONE_GROUP,
            (LedgerTerm.filtered, FilterReason.reward_failed),
        ),
        (action("x", credit=1e39), ONE_GROUP, (LedgerTerm.filtered, FilterReason.reward_failed)),
        (action("x", version=None), ONE_GROUP, (LedgerTerm.filtered, FilterReason.unknown_version)),
        (
            action("x", version="other@1.10"),
            ONE_GROUP,
            (LedgerTerm.filtered, FilterReason.unknown_version),
        ),
        (action("x", version="policy@1.1"), ONE_GROUP, (LedgerTerm.stale, None)),
        (
            action("x"),
            BatchRules(groups_per_step=1, max_row_tokens=2),
            (LedgerTerm.filtered, FilterReason.oversized),
        ),
    ],
)
def test_single_actions_that_are_not_trained_say_why(
    odd: Action, rules: BatchRules, expected: tuple[LedgerTerm, FilterReason | None]
) -> None:
    given_outcomes = outcomes(row("g1", 0, 1.0, actions=(odd,)), row("g1", 1, 0.0), rules=rules)
    assert given_outcomes["x#0"] == expected


@pytest.mark.parametrize("reward", [math.inf, -math.inf, math.nan, 1e39, 1.7e308])
def test_an_episode_whose_reward_cannot_be_computed_with_is_no_part_of_its_group(
    reward: float,
) -> None:
    events = (
        row("g1", 0, reward),
        row("g1", 1, 1.0, size=4),
        row("g1", 2, 0.0),
        stone("g1", 3, reward, size=4),
    )
    (group,) = batcher_with(
        *(msgspec.structs.replace(event, group_size=4) for event in events)
    ).next_batch(NOW)
    assert group.rewards == (1.0, 0.0)
    assert [episode.rollout_id for episode in group.episodes] == ["g1-1", "g1-2"]
    assert group.outcomes["g1-0-0#0"] == (LedgerTerm.filtered, FilterReason.reward_failed)


def test_a_group_whose_step_was_not_made_is_accounted_for_without_it() -> None:
    stale = action("old", version="policy@1.1")
    (group,) = batcher_with(
        row("g1", 0, 1.0, actions=(action("new", 0), stale)), row("g1", 1, 0.0)
    ).next_batch(NOW)
    settled = untrained(group, FilterReason.not_finite)
    assert settled.episodes == ()
    assert settled.outcomes == {
        "new#0": (LedgerTerm.filtered, FilterReason.not_finite),
        "g1-1-0#0": (LedgerTerm.filtered, FilterReason.not_finite),
        "old#0": (LedgerTerm.stale, None),
    }


def test_context_is_not_accounted_for() -> None:
    acts = (action("shared", 0, loss=False), action("own", 2))
    assert set(outcomes(row("g1", 0, 1.0, actions=acts), row("g1", 1, 0.0))) == {
        "own#0",
        "g1-1-0#0",
    }


def test_ledger_entries_name_every_action_once_and_never_leave_a_group_out() -> None:
    stale = action("old", version="policy@1.0")
    (group,) = batcher_with(row("g1", 0, 1.0, actions=(stale,)), row("g1", 1, 0.0)).next_batch(NOW)
    entries = ledger_entries([group], NOW, 7)
    assert {(entry.term, entry.actions) for entry in entries} == {
        (LedgerTerm.stale, ("old#0",)),
        (LedgerTerm.trained, ("g1-1-0#0",)),
    }
    assert {entry.version for entry in entries} == {"policy@1.10"}
    (empty,) = settled(batcher_with(stone("g1", 0), stone("g1", 1)))
    (entry,) = ledger_entries([empty], NOW, 7)
    assert (entry.actions, entry.reason) == ((), FilterReason.missing)


def test_policies_that_settle_the_same_revision_tell_of_it_in_events_of_their_own() -> None:
    batcher = RowBatcher("policy", ONE_GROUP)
    batcher.add(0, 0, row("g1", 0, 1.0))
    batcher.add(0, 1, row("g1", 1, 0.0))
    groups = batcher.next_batch(NOW)
    of_both = [
        *ledger_entries(groups, NOW, 7),
        *ledger_entries(groups, Version("policy-v2", 1, 1), 7),
    ]
    assert len({entry.event_id for entry in of_both}) == len(of_both) == 2


def test_positions_hold_back_for_what_is_not_settled() -> None:
    batcher = batcher_with(row("g1", 0, 1.0), row("g2", 0, 1.0), row("g2", 1, 0.0))
    batcher.next_batch(NOW)
    assert [(p.partition, p.offset) for p in batcher.positions()] == [(0, 0)]
    assert batcher.settled() == {"g2": (0, 2)}
    batcher.add(0, 3, row("g1", 1, 0.0))
    batcher.next_batch(NOW)
    assert [(p.partition, p.offset) for p in batcher.positions()] == [(0, 4)]
    assert batcher.settled() == {}


def test_a_group_that_is_written_again_is_never_trained_again() -> None:
    batcher = batcher_with(row("g1", 0, 1.0), row("g1", 1, 0.0))
    batcher.next_batch(NOW)
    assert batcher.settled() == {}
    assert not batcher.add(0, 7, row("g1", 0, 1.0))
    assert batcher.amendments() == ()
    resumed = RowBatcher("policy", ONE_GROUP)
    resumed.restore(batcher.positions(), {}, {"g1": "g1-r"})
    assert not resumed.add(0, 8, row("g1", 0, 1.0))
    assert resumed.amendments() == ()


def test_staleness_is_counted_in_steps_across_epochs() -> None:
    assert staleness(Version("policy", 0, 4), NOW) == 6
    assert outcomes(
        row("g1", 0, 1.0, actions=(action("x", version="nonsense"),)), row("g1", 1, 0.0)
    )["x#0"] == (LedgerTerm.filtered, FilterReason.unknown_version)


def test_what_another_branch_generated_is_stale() -> None:
    """The learner went back from 1.9 to 1.7, and is at 2.9 now: 1.8 is none of its ancestors."""
    batcher = batcher_with(
        row("g1", 0, 1.0, actions=(action("before", version="policy@1.7"),)),
        row("g1", 1, 0.0, actions=(action("other", version="policy@1.8"),)),
    )
    batcher.lineage = {0: 0, 1: 7, 2: 9}
    (group,) = settled(batcher, Version("policy", 2, 9))
    assert group.outcomes == {
        "before#0": (LedgerTerm.trained, None),
        "other#0": (LedgerTerm.stale, None),
    }


@given(st.integers(0, 2**32), st.integers(1, 3))
def test_a_learner_that_is_killed_and_resumes_settles_every_group_once(
    seed: int, per_step: int
) -> None:
    chance = random.Random(seed)
    rules = BatchRules(groups_per_step=per_step)
    log = [row(f"g{g}", m, float(m)) for g in range(9) for m in (0, 1)]
    chance.shuffle(log)
    batcher = RowBatcher("policy", rules)
    settled: list[str] = []
    saved: tuple[tuple[Position, ...], dict[str, tuple[int, int]], int] = ((), {}, 0)
    offset = 0
    while offset < len(log):
        batcher.add(0, offset, log[offset])
        offset += 1
        groups = batcher.next_batch(NOW)
        if groups:
            settled += [group.group_id for group in groups]
            saved = (batcher.positions(), batcher.settled(), len(settled))
        if chance.random() < 0.2:
            batcher = RowBatcher("policy", rules)
            batcher.restore(saved[0], saved[1])
            offset = saved[0][0].offset if saved[0] else 0
            assert len(settled) == saved[2]
    settled += [group.group_id for group in batcher.next_batch(NOW, partial=True)]
    settled += [group.group_id for group in batcher.next_batch(NOW, partial=True)]
    settled += [group.group_id for group in batcher.next_batch(NOW, partial=True)]
    assert sorted(settled) == sorted({f"g{g}" for g in range(9)})


def test_the_smallest_spread_that_teaches() -> None:
    """One bound decides here and in credit rules: what is trained is also scaled."""
    above = 2 * SMALLEST_SPREAD
    outcomes_above = outcomes(row("g1", 0, 0.0), row("g1", 1, above))
    assert set(outcomes_above.values()) == {(LedgerTerm.trained, None)}
    assert relative(above, [0.0, above]) > 0
    assert relative(SMALLEST_SPREAD, [0.0, SMALLEST_SPREAD]) == 0
