"""Which rewards count, when they are complete, and what they add up to."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import FilterReason
from fulgurite.episodes.stitching import stitch
from fulgurite.events import Declaration, Episode
from fulgurite.groups.rewards import (
    LARGEST_REWARD,
    LARGEST_TOTAL,
    LARGEST_WEIGHT,
    EpisodeRewards,
    combine,
    counted,
    excess,
    is_complete,
)
from fulgurite.ids import action_id
from tests.synthetic import make_call, make_declared, make_reward, make_status


def episode() -> Episode:
    made = stitch([make_call(), make_status()])
    assert made is not None
    return made


def declaration(
    expected: tuple[str, ...] = ("reward",), weights: dict[str, float] | None = None
) -> Declaration:
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


def test_a_fallback_counts_where_nothing_else_does() -> None:
    judged = make_reward(value=0.4, name="judge", at=9_000, fallback=True)
    assert counted(episode(), [judged]) == (judged,)
    for vote in (
        make_reward(value=1.0),
        make_reward(value=0.0, final=False),
        make_reward(value=1.0, name="judge"),
        make_reward(value=None, name="other"),
    ):
        assert counted(episode(), [judged, vote]) == counted(episode(), [vote, judged]) == (vote,)
    for_nobody = make_reward(index=1)
    assert counted(episode(), [for_nobody, judged]) == (judged,)


def test_a_fallback_completes_nothing() -> None:
    judged = make_reward(value=0.4, fallback=True)
    assert not is_complete(None, [judged])
    assert not is_complete(declaration(), [judged])


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


def test_a_reward_of_an_action_that_the_episode_does_not_have_counts_for_nothing() -> None:
    call = make_call()
    of_call = make_reward(name="step", call_id=call.call_id, choice=0)
    whole = make_reward(at=3_500)
    elsewhere = make_reward(name="step", call_id=make_call(salt=1).call_id, choice=0)
    no_choice = make_reward(name="step", call_id=call.call_id, choice=1)
    assert counted(episode(), [whole, of_call, elsewhere, no_choice]) == (whole, of_call)
    # What is not known to be wrong counts: the choices of a call may lie elsewhere.
    unknown = stitch([make_call(answers=()), make_status()])
    assert unknown is not None
    assert counted(unknown, [no_choice]) == (no_choice,)


@pytest.mark.parametrize(
    ("values", "weights"),
    [
        ((1e308, 1e308), {}),
        ((1e308, -1e308), {}),
        ((100.0, 0.0), {"a": 1e308}),
        ((1e39, 0.0), {}),
        ((math.inf, 0.0), {}),
        ((math.nan, 0.0), {}),
        ((math.inf, 0.0), {"a": 0.0}),
        ((LARGEST_TOTAL * 2, 0.0), {"a": 0.0}),
    ],
)
def test_what_adds_up_to_more_than_can_be_trained_on_is_no_reward_and_says_why(
    values: tuple[float, float], weights: dict[str, float]
) -> None:
    made = declaration(("a", "b"), weights)
    rewards = [
        make_reward(value=value, name=name) for name, value in zip("ab", values, strict=True)
    ]
    assert combine(made, rewards) is FilterReason.reward_failed
    assert "of its 2 rewards add up to" in (excess(made, rewards) or "")


NUMBERS = st.floats() | st.sampled_from([1e39, -1e39, 1.7e308, LARGEST_TOTAL, LARGEST_REWARD])


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.lists(NUMBERS, max_size=6))
def test_whatever_the_log_holds_a_reward_is_bounded_with_all_its_parts(
    values: list[float], weights: list[float]
) -> None:
    made = declaration(("0",), {str(place): weight for place, weight in enumerate(weights)})
    combined = combine(
        made, [make_reward(value=value, name=str(place)) for place, value in enumerate(values)]
    )
    if isinstance(combined, EpisodeRewards):
        parts = (
            combined.total,
            combined.outcome,
            *combined.actions.values(),
            *combined.named.values(),
        )
        assert all(abs(part) <= LARGEST_TOTAL * 1.001 for part in parts)


def test_one_accepted_reward_of_any_weight_is_combined() -> None:
    combined = combine(
        declaration(weights={"reward": -LARGEST_WEIGHT}), [make_reward(value=LARGEST_REWARD)]
    )
    assert isinstance(combined, EpisodeRewards)
    assert combined.total == -LARGEST_TOTAL
