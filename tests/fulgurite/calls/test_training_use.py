"""Which calls are counted, and which of an episode are left out, by what the gateway wrote."""

from __future__ import annotations

import pytest

from fulgurite.calls.training_use import (
    find_left_out_calls,
    find_uncounted_calls,
    is_counted,
    is_over_quota,
    wants_fallback,
)
from fulgurite.enums import Mode, TrainingUse
from fulgurite.events import LlmCall
from tests.synthetic import make_call


def live(turn: int, use: TrainingUse) -> LlmCall:
    return make_call(turn=turn, mode=Mode.live, use=use)


@pytest.mark.parametrize(
    ("mode", "use", "counted"),
    [
        (Mode.train, TrainingUse.by_mode, True),
        (Mode.train, TrainingUse.excluded, True),
        (Mode.live, TrainingUse.by_mode, False),
        (Mode.live, TrainingUse.live, True),
        (Mode.live, TrainingUse.quota, True),
        (Mode.live, TrainingUse.excluded, False),
        (Mode.live, TrainingUse.unknown, False),
        (Mode.val, TrainingUse.live, False),
    ],
)
def test_mode_and_use_say_whether_a_call_is_counted(
    mode: Mode, use: TrainingUse, counted: bool
) -> None:
    assert is_counted(make_call(mode=mode, use=use)) is counted


@pytest.mark.parametrize("use", [TrainingUse.excluded, TrainingUse.unknown])
def test_one_call_leaves_its_whole_episode_out(use: TrainingUse) -> None:
    calls = [live(0, TrainingUse.live), live(1, use)]
    assert find_left_out_calls(calls) == {call.call_id for call in calls}
    assert find_uncounted_calls(calls) == {calls[1].call_id}


def test_aliases_that_are_not_opted_in_are_left_out_of_an_episode_that_is() -> None:
    calls = [live(0, TrainingUse.live), live(1, TrainingUse.by_mode)]
    assert find_left_out_calls(calls) == find_uncounted_calls(calls) == {calls[1].call_id}
    assert find_left_out_calls(calls[1:]) == frozenset()


def test_one_call_beyond_the_quota_is_enough() -> None:
    assert is_over_quota([live(0, TrainingUse.live), live(1, TrainingUse.quota)])
    assert not is_over_quota([live(0, TrainingUse.live)])


def test_a_judge_may_look_at_what_is_opted_in_within_its_quota() -> None:
    assert wants_fallback([live(0, TrainingUse.live), live(1, TrainingUse.by_mode)])
    assert not wants_fallback([])
    assert not wants_fallback([live(0, TrainingUse.by_mode)])
    assert not wants_fallback([live(0, TrainingUse.live), live(1, TrainingUse.quota)])
    assert not wants_fallback([live(0, TrainingUse.live), live(1, TrainingUse.excluded)])
