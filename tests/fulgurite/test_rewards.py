"""Which rewards count, when they are complete, and what they add up to."""

from __future__ import annotations

from fulgurite.events import Declaration, Episode
from fulgurite.ids import action_id
from fulgurite.kinds import FilterReason
from fulgurite.rewards import EpisodeRewards, combine, counted, is_complete
from fulgurite.stitching import stitch
from tests.synthetic import make_call, make_declared, make_reward, make_status


def episode() -> Episode:
    made = stitch([make_call(), make_status()])
    assert made is not None
    return made


def declaration(expected: tuple[str, ...] = ("reward",), weights: dict[str, float] | None = None) -> Declaration:
    made = make_declared(expected=expected, weights=weights).declaration
    assert made is not None
    return made


def test_the_last_final_reward_of_a_name_counts() -> None:
    draft = make_reward(value=0.1, final=False, at=9_000)
    first, last = make_reward(value=0.2, at=3_000), make_reward(value=0.3, at=4_000)
    assert counted(episode(), [first, last, draft]) == (last,)
    assert counted(episode(), [draft, last, first]) == (last,)


def test_rewards_of_other_rollouts_and_attempts_do_not_count() -> None:
    assert counted(episode(), [make_reward(index=1), make_reward(attempt=1)]) == ()
    mine = make_reward(attempt=0)
    assert counted(episode(), [mine]) == (mine,)


def test_completeness() -> None:
    assert not is_complete(None, [])
    assert not is_complete(None, [make_reward(final=False)])
    assert is_complete(None, [make_reward()])
    both = declaration(("reward", "style"))
    assert not is_complete(both, [make_reward()])
    assert is_complete(both, [make_reward(), make_reward(name="style")])


def test_weighted_sum_of_outcome_and_actions() -> None:
    call = make_call()
    rewards = [
        make_reward(value=1.0),
        make_reward(value=2.0, name="step", call_id=call.call_id, choice=0),
        make_reward(value=3.0, name="step", call_id=call.call_id, choice=1),
        make_reward(value=4.0, name="other", call_id=call.call_id),
    ]
    assert combine(declaration(weights={"step": 0.5}), rewards) == EpisodeRewards(
        total=1.0 + 1.0 + 1.5 + 4.0,
        outcome=1.0,
        actions={action_id(call.call_id, 0): 5.0, action_id(call.call_id, 1): 1.5},
        named={"reward": 1.0, "step": 5.0, "other": 4.0},
    )


def test_no_reward_is_not_zero() -> None:
    assert combine(None, []) is FilterReason.no_reward
    assert combine(declaration(("reward", "style")), [make_reward()]) is FilterReason.no_reward
    assert combine(declaration(), [make_reward(value=None)]) is FilterReason.reward_failed
    alone = combine(None, [make_reward(value=0.0)])
    assert isinstance(alone, EpisodeRewards)
    assert alone.total == 0.0
