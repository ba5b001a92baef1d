"""Groups without a baseline of their own are compared with the batch, or with those before."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import FilterReason, LedgerTerm
from fulgurite.events import Tombstone, Trajectory
from fulgurite.learning.baselines import Average, MovingAverages, pool
from fulgurite.learning.batching import BatchGroup, BatchRules, trained_tokens
from tests.fulgurite.learning.test_batching import NOW, action, batcher_with, row, settled, stone

POOLED = BatchRules(groups_per_step=2, baseline="batch")
MOVING = BatchRules(groups_per_step=1, baseline="moving_average")
REWARDS = st.lists(st.floats(-10, 10), min_size=2, max_size=8)


def alone(group: str, reward: float | None, *, rule: str = "identical") -> Trajectory:
    """A group of one rollout with two turns, each paid half of the reward."""
    first, second = (
        msgspec.structs.replace(
            action(f"{group}-{turn}", 2 * turn, credit=(reward or 0.0) * (2 - turn) / 2), turn=turn
        )
        for turn in (0, 1)
    )
    made = row(group, 0, reward, size=1, actions=(first, second))
    return msgspec.structs.replace(made, credit_rule=rule)


def batch(*events: Trajectory | Tombstone, rules: BatchRules = POOLED) -> tuple[BatchGroup, ...]:
    return batcher_with(*events, rules=rules).next_batch(NOW, partial=True)


def test_a_group_of_one_is_trained_where_it_has_a_baseline() -> None:
    lone = [alone("g1", 1.0), alone("g2", 0.0)]
    for group in settled(batcher_with(*lone)):
        assert set(group.outcomes.values()) == {(LedgerTerm.filtered, FilterReason.no_baseline)}
    for rules in (POOLED, MOVING):
        found = settled(batcher_with(*lone, rules=rules))
        assert [group.is_lone for group in found] == [True] * len(found)
        assert {term for group in found for term, _ in group.outcomes.values()} == {
            LedgerTerm.trained
        }


def test_a_group_of_which_one_member_is_scored_is_alone_too() -> None:
    (group,) = settled(batcher_with(row("g1", 0, 1.0), stone("g1", 1), rules=MOVING))
    assert (group.is_lone, group.rewards) == (True, (1.0,))


def test_a_group_with_a_baseline_of_its_own_keeps_it_and_may_have_no_signal() -> None:
    found = settled(
        batcher_with(
            *(row("g1", member, 1.0) for member in (0, 1)),
            *(row("g2", member, float(member)) for member in (0, 1)),
            rules=MOVING,
        )
    )
    assert [(group.is_lone, bool(group.episodes)) for group in found] == [
        (False, True),
        (False, False),
    ]


def test_a_group_says_whether_its_rule_has_a_baseline_of_its_own() -> None:
    for rule, has_one in (("last_step", True), ("identical", False)):
        (group,) = settled(batcher_with(alone("g1", 1.0, rule=rule), rules=MOVING))
        assert (group.is_lone, group.rule_has_baseline) == (True, has_one)


def test_no_reward_is_no_reward_whatever_the_baseline_is() -> None:
    (group,) = settled(batcher_with(alone("g1", None), rules=MOVING))
    assert set(group.outcomes.values()) == {(LedgerTerm.filtered, FilterReason.no_reward)}


@given(REWARDS)
def test_a_pool_holds_every_scored_episode_of_the_batch(rewards: list[float]) -> None:
    rules = msgspec.structs.replace(POOLED, groups_per_step=len(rewards))
    groups = batch(*(alone(f"g{n}", reward) for n, reward in enumerate(rewards)), rules=rules)
    found = pool(groups)
    assert sorted(found.rewards) == sorted(rewards)
    assert found.turns == {}
    assert found.peers(groups[0], 1) == found.rewards


@given(REWARDS)
def test_returns_are_pooled_by_turn(rewards: list[float]) -> None:
    rules = msgspec.structs.replace(POOLED, groups_per_step=len(rewards))
    lone = [alone(f"g{n}", reward, rule="step") for n, reward in enumerate(rewards)]
    groups = batch(*lone, rules=rules)
    found = pool(groups)
    assert sorted(found.peers(groups[0], 0)) == pytest.approx(sorted(rewards))
    assert sorted(found.peers(groups[0], 1)) == pytest.approx(sorted(r / 2 for r in rewards))


def test_the_only_episode_of_a_batch_with_returns_is_compared_with_rewards() -> None:
    groups = batch(alone("g1", 1.0, rule="step"), alone("g2", 0.0))
    assert pool(groups).peers(groups[0], 0) == (1.0, 0.0)


def test_a_batch_that_is_compared_with_itself_waits_for_company() -> None:
    rules = msgspec.structs.replace(POOLED, groups_per_step=1)
    batcher = batcher_with(alone("g1", 1.0), rules=rules)
    assert not batcher.has_batch(NOW)
    assert batcher.next_batch(NOW, partial=True) == ()
    batcher.add(0, 9, alone("g2", 0.0))
    assert batcher.has_batch(NOW)
    assert len(batcher.next_batch(NOW)) == 2


def test_a_group_beside_one_with_several_episodes_has_company() -> None:
    members = [row("g2", member, float(member)) for member in (0, 1)]
    assert len(batch(alone("g1", 1.0), *members)) == 2


def test_a_batch_may_be_whole_by_its_tokens() -> None:
    rules = BatchRules(tokens_per_step=9, baseline="moving_average")
    batcher = batcher_with(*(alone(f"g{n}", 1.0) for n in range(1, 6)), rules=rules)
    first = batcher.next_batch(NOW)
    assert [trained_tokens(group) for group in first] == [4, 4, 4]
    assert not batcher.has_batch(NOW)
    assert len(batcher.next_batch(NOW, partial=True)) == 2


def test_an_average_moves_by_what_a_batch_leaves_of_it() -> None:
    averages = MovingAverages(decay=0.75)
    first, second = (batch(alone("g1", reward), rules=MOVING) for reward in (4.0, 0.0))
    averages.begin(first)
    assert averages.of(first[0], 0) == Average(4.0, 16.0)
    averages.observe(first)
    averages.begin(second)
    assert averages.of(second[0], 0).mean == 4.0, "a batch is compared with those before"
    averages.observe(second)
    assert averages.state() == {"episodes": (3.0, 12.0)}


def test_returns_have_an_average_for_each_turn() -> None:
    averages = MovingAverages(decay=0.5)
    groups = batch(alone("g1", 4.0, rule="step"), rules=MOVING)
    averages.observe(groups)
    assert averages.state() == {"turn 0": (4.0, 16.0), "turn 1": (2.0, 4.0)}
    again = MovingAverages(decay=0.5)
    again.restore(averages.state())
    assert again.of(groups[0], 1) == Average(2.0, 4.0)


def test_an_agent_that_takes_many_turns_does_not_make_an_average_for_each() -> None:
    actions = tuple(
        msgspec.structs.replace(action(f"a{turn}"), turn=turn, credit=1.0) for turn in range(200)
    )
    made = msgspec.structs.replace(row("g1", 0, 1.0, size=1, actions=actions), credit_rule="step")
    averages = MovingAverages(decay=0.5)
    averages.observe(batch(made, rules=MOVING))
    assert len(averages.state()) == 64


def test_a_batch_without_groups_moves_nothing() -> None:
    averages = MovingAverages(decay=0.5)
    averages.observe(())
    assert averages.state() == {}


@pytest.mark.parametrize(
    ("average", "in_spreads", "advantage"),
    [
        (Average(1.0, 5.0), True, 1.0),
        (Average(1.0, 5.0), False, 2.0),
        (Average(1.0, 1.0), True, 2.0),
        (Average(1.0, 0.9), True, 2.0),
    ],
)
def test_an_advantage_is_in_spreads_where_there_is_one(
    average: Average, in_spreads: bool, advantage: float
) -> None:
    assert average.advantage(3.0, in_spreads=in_spreads) == advantage


@given(st.lists(REWARDS, min_size=2, max_size=5))
def test_the_average_of_many_equal_batches_is_theirs(batches: Sequence[list[float]]) -> None:
    averages = MovingAverages(decay=0.5)
    rewards = batches[0]
    rules = msgspec.structs.replace(MOVING, groups_per_step=len(rewards))
    groups = batch(*(alone(f"g{n}", reward) for n, reward in enumerate(rewards)), rules=rules)
    for _ in batches:
        averages.begin(groups)
        averages.observe(groups)
    assert averages.of(groups[0], 0).mean == pytest.approx(fmean(rewards), abs=1e-9)


def of_alias(alias: str | None, group: str, reward: float) -> tuple[BatchGroup, ...]:
    made = msgspec.structs.replace(alone(group, reward), alias=alias)
    return batch(made, rules=MOVING)


def test_each_alias_has_an_average_of_its_own() -> None:
    averages = MovingAverages(decay=0.5)
    strict, kind = of_alias("strict", "g1", 0.0), of_alias("kind", "g2", 1.0)
    for groups in (strict, kind, kind, strict):
        averages.begin(groups)
        averages.observe(groups)
    assert averages.of(strict[0], 0).mean == 0.0
    assert averages.of(kind[0], 0).mean == 1.0
    assert set(averages.state()) == {"episodes of strict", "episodes of kind"}


def test_an_episode_without_rows_counts_for_its_alias() -> None:
    lost = msgspec.structs.replace(stone("g1", 0, 0.5, size=1), alias="kind")
    (group,) = settled(batcher_with(lost, rules=MOVING))
    assert group.alias == "kind"


def test_an_alias_begins_with_the_average_that_an_earlier_release_kept() -> None:
    averages = MovingAverages(decay=0.5)
    averages.restore({"episodes": (0.25, 0.5)})
    (group,) = of_alias("kind", "g1", 1.0)
    averages.begin((group,))
    assert averages.of(group, 0) == Average(0.25, 0.5)
    averages.observe((group,))
    assert averages.state() == {"episodes": (0.25, 0.5), "episodes of kind": (0.625, 0.75)}


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.floats(-1, 1)), min_size=2))
def test_a_learner_that_resumes_has_the_same_averages(paid: list[tuple[str | None, float]]) -> None:
    batches = [of_alias(alias, f"g{n}", reward) for n, (alias, reward) in enumerate(paid)]
    without_stop, before_stop = MovingAverages(0.9), MovingAverages(0.9)
    for groups in batches:
        without_stop.begin(groups)
        without_stop.observe(groups)
    for groups in batches[: len(batches) // 2]:
        before_stop.begin(groups)
        before_stop.observe(groups)
    resumed = MovingAverages(0.9)
    resumed.restore(
        msgspec.json.decode(
            msgspec.json.encode(before_stop.state()), type=dict[str, tuple[float, float]]
        )
    )
    for groups in batches[len(batches) // 2 :]:
        resumed.begin(groups)
        resumed.observe(groups)
    assert resumed.state() == without_stop.state()
