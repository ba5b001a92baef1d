"""Live traffic that is opted in closes as groups of one, like traffic of mode `train`."""

from __future__ import annotations

import pytest

from fulgurite.enums import FilterReason, LedgerTerm, Mode, StatusKind, TrainingUse
from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.episodes.stitching import stitch
from fulgurite.events import AgentReward, LedgerEntry, LlmCall, Tombstone, Trajectory
from fulgurite.groups.group_revisions import Output
from fulgurite.groups.group_state import GroupState
from fulgurite.ids import action_id
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status

RULES = FailureRules()


def call(turn: int = 0, use: TrainingUse = TrainingUse.live, policy: str = "policy") -> LlmCall:
    return make_call(turn=turn, mode=Mode.live, use=use, policy=policy, prompt=(turn, 1, 2))


def group(*calls: LlmCall, rewards: tuple[AgentReward, ...] = ()) -> GroupState:
    state = GroupState()
    episode = stitch([*calls, make_status(0, 0, StatusKind.timed_out, mode=Mode.live)])
    assert episode is not None
    for event in (episode, *rewards):
        state.add(event)
    return state


def close(*calls: LlmCall, rewards: tuple[AgentReward, ...] = ()) -> tuple[Output, ...]:
    return group(*calls, rewards=rewards).close(group_id(0), RULES)


def test_a_thumb_completes_the_group_and_its_row_is_trained_like_any_other() -> None:
    assert not group(call()).is_complete(RULES)
    assert group(call(), rewards=(make_reward(),)).is_complete(RULES)
    (row,) = close(call(), rewards=(make_reward(value=1.0),))
    assert isinstance(row, Trajectory)
    assert (row.mode, row.group_size, row.episode_reward) == (Mode.train, 1, 1.0)
    assert [action.loss for action in row.actions] == [True]
    assert row.alias == "policy"


def test_without_a_thumb_it_is_filtered_and_never_a_reward_of_nothing() -> None:
    entry, stone = close(call())
    assert isinstance(entry, LedgerEntry)
    assert isinstance(stone, Tombstone)
    assert stone.alias == "policy"
    assert (entry.term, entry.reason, stone.reason, stone.mode) == (
        LedgerTerm.filtered,
        FilterReason.no_reward,
        FilterReason.no_reward,
        Mode.train,
    )


def test_a_judges_score_is_trained_where_nobody_votes_and_a_vote_wins() -> None:
    judged = make_reward(value=0.4, name="judge", fallback=True)
    waiting = group(call(), rewards=(judged,))
    assert not waiting.is_complete(RULES), "somebody may still vote"
    (row,) = waiting.close(group_id(0), RULES)
    assert isinstance(row, Trajectory)
    assert (row.episode_reward, row.rewards) == (0.4, {"judge": 0.4})
    (voted,) = close(call(), rewards=(judged, make_reward(value=1.0)))
    assert isinstance(voted, Trajectory)
    assert (voted.episode_reward, voted.rewards) == (1.0, {"reward": 1.0})
    assert voted == close(call(), rewards=(make_reward(value=1.0),))[0]


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (TrainingUse.quota, FilterReason.quota),
        (TrainingUse.excluded, FilterReason.excluded),
        (TrainingUse.unknown, FilterReason.excluded),
    ],
)
def test_one_call_that_may_not_be_trained_keeps_its_episode_out(
    use: TrainingUse, reason: FilterReason
) -> None:
    calls = (call(0), call(1, use))
    assert group(*calls).is_complete(RULES), "it waits for no reward"
    entry, stone = close(*calls, rewards=(make_reward(),))
    assert isinstance(entry, LedgerEntry)
    assert isinstance(stone, Tombstone)
    counted = calls if use is TrainingUse.quota else calls[:1]
    assert entry.reason is stone.reason is reason
    assert set(entry.actions) == {action_id(one.call_id, 0) for one in counted}


def test_calls_of_other_aliases_are_no_part_of_it_and_in_no_entry() -> None:
    small = call(1, TrainingUse.by_mode, policy="small")
    (row,) = close(call(0), small, rewards=(make_reward(),))
    assert isinstance(row, Trajectory)
    assert [action.call_id for action in row.actions] == [call(0).call_id]


def test_without_an_opt_in_it_stays_live_and_is_in_no_ledger() -> None:
    (row,) = close(call(0, TrainingUse.by_mode), rewards=(make_reward(),))
    (stone,) = close(call(0, TrainingUse.excluded), rewards=(make_reward(),))
    assert isinstance(row, Trajectory)
    assert isinstance(stone, Tombstone)
    assert (row.mode, stone.mode, stone.reason) == (Mode.live, Mode.live, FilterReason.excluded)


def test_a_declared_rollout_can_be_left_out_too() -> None:
    state = GroupState()
    uses = (TrainingUse.by_mode, TrainingUse.excluded)
    for index, use in enumerate(uses):
        episode = stitch([make_declared(), make_call(0, index, use=use), make_status(0, index)])
        assert episode is not None
        state.add(episode)
        state.add(make_reward(0, index, float(index)))
    entry, row, stone = state.close(group_id(0), RULES)
    assert isinstance(entry, LedgerEntry)
    assert isinstance(row, Trajectory)
    assert isinstance(stone, Tombstone)
    assert entry.reason is stone.reason is FilterReason.excluded
    assert (row.group_size, row.group_members_scored) == (2, 1)
