"""Which calls were tried again and came to nothing, and which siblings are branches."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import CallOutcome, FilterReason
from fulgurite.episodes.episode_deltas import EpisodeCalls
from fulgurite.events import LlmCall
from fulgurite.ids import action_id
from fulgurite.trajectories.building import build_trajectories
from fulgurite.trajectories.retried_calls import find_retried_calls
from tests.fulgurite.trajectories.test_building import episode_of
from tests.synthetic import make_call


def ask(
    turn: int,
    at: int,
    prompt: Sequence[int] = (1, 2),
    answers: Sequence[Sequence[int]] = ((7,),),
    **more: object,
) -> LlmCall:
    """A call that takes 5 ms."""
    return make_call(turn=turn, at=at, prompt=prompt, answers=answers, **more)  # type: ignore[arg-type]


def retried_of(calls: Sequence[LlmCall]) -> frozenset[str]:
    return find_retried_calls(EpisodeCalls(calls))


FIRST = ask(0, 1_000, answers=[(7,)])
AGAIN = ask(1, 1_010, answers=[(8,)])
ON = ask(2, 1_020, prompt=(1, 2, 8, 3), answers=[(9,)])


def test_a_call_that_was_tried_again_and_built_upon_is_superseded() -> None:
    assert retried_of([FIRST, AGAIN, ON]) == {FIRST.call_id}
    built = build_trajectories(episode_of(FIRST, AGAIN, ON))
    assert [(lost.action, lost.policy, lost.reason) for lost in built.left_out] == [
        (action_id(FIRST.call_id, 0), "policy", FilterReason.superseded)
    ]
    (row,) = built.rows
    assert [action.call_id for action in row.actions] == [AGAIN.call_id, ON.call_id]


def test_calls_that_are_ignored_are_no_siblings_and_build_on_nothing() -> None:
    calls = EpisodeCalls([FIRST, AGAIN, ON])
    assert find_retried_calls(calls, {ON.call_id}) == frozenset()
    assert find_retried_calls(calls, {FIRST.call_id}) == frozenset()


@pytest.mark.parametrize(
    ("calls", "why"),
    [
        ([FIRST, AGAIN], "nobody built upon either"),
        ([FIRST, AGAIN, ON, ask(3, 1_030, prompt=(1, 2, 7, 3))], "both were built upon"),
        ([FIRST, AGAIN, ask(2, 1_020, prompt=(1, 2, 7, 3))], "it is the first that was built upon"),
        ([FIRST, ask(1, 1_003, answers=[(8,)]), ON], "asked for at once"),
        ([FIRST, ask(1, 1_010, answers=[(8,), (6,)]), ON], "the later has several choices"),
        ([ask(0, 1_000, answers=[(7,), (6,)]), AGAIN, ON], "it has several choices itself"),
        ([FIRST, ask(1, 1_010, answers=[(8,)], agent="critic"), ON], "another role asked"),
        ([FIRST, ask(1, 1_010, answers=[(8,)], policy="other"), ON], "another policy answered"),
        ([FIRST, ask(1, 1_010, prompt=(1,), answers=[(8,)]), ON], "the prompts differ"),
        (
            [msgspec.structs.replace(FIRST, outcome=CallOutcome.upstream_error), AGAIN, ON],
            "it gave no answer",
        ),
        (
            [make_call(turn=0, prompt=None), make_call(turn=1, prompt=None, at=1_010)],
            "no tokens, no telling",
        ),
    ],
)
def test_what_is_not(calls: list[LlmCall], why: str) -> None:
    assert retried_of(calls) == frozenset(), why


def test_whoever_builds_upon_the_text_has_built_upon_the_answer() -> None:
    """The tokens of a conversation may part though the agent changed nothing."""
    asked = [{"role": "user", "content": "go"}]
    seven, eight = (
        {"role": "assistant", "content": "seven"},
        {"role": "assistant", "content": "eight"},
    )
    first = ask(0, 1_000, answers=[(7,)], messages=asked, replies=[seven])
    again = ask(1, 1_010, answers=[(8,)], messages=asked, replies=[eight])
    upon_first = ask(2, 1_020, prompt=(5, 5), messages=[*asked, seven])
    upon_again = ask(3, 1_030, prompt=(5, 6), messages=[*asked, eight])
    assert retried_of([first, again, upon_again]) == {first.call_id}
    assert retried_of([first, again, upon_first, upon_again]) == frozenset()


@given(
    st.permutations([FIRST, AGAIN, ON, ask(3, 1_030, answers=[(6,)]), ask(4, 1_040, prompt=(4,))])
)
def test_the_order_of_arrival_plays_no_part(calls: list[LlmCall]) -> None:
    # The third try came too late to replace what was used.
    assert retried_of(calls) == {FIRST.call_id}
