"""Rows by exact token prefix: examples, and properties over random conversations."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import CallOutcome, FilterReason, LogprobsMode, PrefixBreak
from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.episodes.stitching import stitch
from fulgurite.events import Action, Episode, LlmCall, ParentRef
from fulgurite.failures import FailureAction, FailureKind
from fulgurite.groups.credit.steps import steps_of
from fulgurite.ids import action_id
from fulgurite.tokens import pack_ids, pack_logprobs, unpack_ids
from fulgurite.trajectories.building import (
    build_trajectories,
    paths,
    sampling_trainable,
    successful_actions,
)
from tests.synthetic import SAMPLING, make_call, make_status


def episode_of(*calls: LlmCall) -> Episode:
    episode = stitch([*calls, make_status(at=9_000)])
    assert episode is not None
    return episode


def spans(actions: Sequence[Action]) -> list[tuple[int, int, bool]]:
    return [(action.start, action.end, action.loss) for action in actions]


def test_turns_that_extend_one_another_are_one_row() -> None:
    built = build_trajectories(
        episode_of(
            make_call(turn=0, at=1_000, prompt=(1, 2), answers=[(7, 9)]),
            make_call(turn=1, at=1_100, prompt=(1, 2, 7, 9, 5, 6), answers=[(8, 9)]),
        )
    )
    (row,) = built.rows
    assert unpack_ids(row.token_ids).tolist() == [1, 2, 7, 9, 5, 6, 8, 9]
    assert spans(row.actions) == [(2, 4, True), (6, 8, True)]
    assert (row.break_kind, row.broke_from, built.left_out) == (None, None, ())


def test_siblings_are_branches() -> None:
    built = build_trajectories(
        episode_of(
            make_call(turn=0, at=1_000, prompt=(1,), answers=[(7,)]),
            make_call(turn=1, at=1_100, prompt=(1, 7, 2), answers=[(8,), (9,)]),
            make_call(turn=2, at=1_200, prompt=(1, 7, 2, 9, 3), answers=[(4,)]),
        )
    )
    first, second = built.rows
    assert spans(first.actions) == [(1, 2, True), (3, 4, True)]
    assert spans(second.actions) == [(1, 2, False), (3, 4, True), (5, 6, True)]
    assert (second.break_kind, second.broke_from) == (PrefixBreak.branch, 0)
    assert [len(path) for path in paths(built.rows)] == [2, 3]


def test_a_call_that_begins_within_a_row_branches_off_it() -> None:
    built = build_trajectories(
        episode_of(
            make_call(turn=0, at=1_000, prompt=(1,), answers=[(7,)]),
            make_call(turn=1, at=1_100, prompt=(1, 7, 2), answers=[(8,)]),
            make_call(turn=2, at=1_200, prompt=(1, 7, 3), answers=[(9,)]),
            make_call(turn=3, at=1_300, prompt=(1,), answers=[(6,)]),
        )
    )
    assert [row.break_kind for row in built.rows] == [None, PrefixBreak.branch, PrefixBreak.branch]
    assert spans(built.rows[1].actions) == [(1, 2, False), (3, 4, True)]
    assert spans(built.rows[2].actions) == [(1, 2, True)]


def test_a_rewritten_context_opens_a_row_that_goes_on_in_time() -> None:
    built = build_trajectories(
        episode_of(
            make_call(turn=0, at=1_000, prompt=(1, 2), answers=[(7,)]),
            make_call(turn=1, at=1_100, prompt=(4, 4), answers=[(8,)]),
            make_call(turn=2, at=1_200, prompt=(5, 5), answers=[(3,)]),
        )
    )
    assert [(row.break_kind, row.broke_from) for row in built.rows] == [
        (None, None),
        (PrefixBreak.rewritten, 0),
        (PrefixBreak.rewritten, 1),
    ]
    (path,) = paths(built.rows)
    assert len(path) == 3


def test_what_an_action_saw_is_told_by_hashes() -> None:
    calls = (
        make_call(turn=0, at=1_000, prompt=(1,), answers=[(7,)]),
        make_call(turn=1, at=1_100, prompt=(1, 7, 2, 3), answers=[(8,), (9,)], agent="critic"),
    )
    steps = steps_of(build_trajectories(episode_of(*calls)).rows)

    def hashed(*token_ids: int) -> bytes:
        return hashlib.sha256(pack_ids(token_ids)).digest()

    seen = [
        (steps[name].agent, steps[name].state, steps[name].observation)
        for call in calls
        for name in successful_actions(call)
    ]
    later = ("critic", hashed(1, 7, 2, 3), hashed(2, 3))
    assert seen == [("", hashed(1), hashed(1)), later, later]


def test_other_roles_branch_and_other_policies_share_no_row() -> None:
    built = build_trajectories(
        episode_of(
            make_call(turn=0, at=1_000, prompt=(1, 2), answers=[(7,)]),
            make_call(turn=1, at=1_100, prompt=(4,), answers=[(8,)], agent="critic"),
            make_call(
                turn=2,
                at=1_200,
                prompt=(1, 2, 7),
                answers=[(3,)],
                policy="other",
                version="other@0.0",
            ),
        )
    )
    assert [(row.agent, row.policy, row.break_kind, row.broke_from) for row in built.rows] == [
        ("", "policy", None, None),
        ("critic", "policy", PrefixBreak.branch, 0),
        ("", "other", PrefixBreak.branch, 1),
    ]


@pytest.mark.parametrize(
    "call",
    [
        make_call(prompt=None),
        make_call(answers=[None]),
        make_call(answers=[()]),
        msgspec.structs.replace(
            make_call(),
            parent=ParentRef(
                call_id="c", partition=0, offset=0, shared_tokens=0, shared_messages=0
            ),
        ),
        msgspec.structs.replace(
            make_call(),
            choices=(
                msgspec.structs.replace(make_call().choices[0], logprobs=pack_logprobs([0.0])),
            ),
        ),
    ],
)
def test_choices_without_tokens_are_left_out_by_name(call: LlmCall) -> None:
    built = build_trajectories(episode_of(call))
    assert built.rows == ()
    assert [(lost.action, lost.reason) for lost in built.left_out] == [
        (action_id(call.call_id, 0), FilterReason.no_tokens)
    ]


def test_failed_calls_are_no_actions() -> None:
    call = make_call(outcome=CallOutcome.upstream_error)
    assert successful_actions(call) == ()
    assert build_trajectories(episode_of(call)).rows == ()


@pytest.mark.parametrize(
    ("call", "rules", "mask"),
    [
        (make_call(), FailureRules(), None),
        (make_call(version=None), FailureRules(), FilterReason.unknown_version),
        (make_call(finish="length"), FailureRules(), FilterReason.truncated),
        (
            make_call(finish="length"),
            FailureRules(policies={FailureKind.truncated: FailureAction.train}),
            None,
        ),
        (
            make_call(sampling=msgspec.structs.replace(SAMPLING, temperature=0.0)),
            FailureRules(),
            FilterReason.untrainable_sampling,
        ),
    ],
)
def test_masks(call: LlmCall, rules: FailureRules, mask: FilterReason | None) -> None:
    assert build_trajectories(episode_of(call), rules).rows[0].actions[0].mask is mask


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0},
        {"temperature": 1e-5},
        {"top_p": 0.9},
        {"top_k": 1},
        {"min_p": 0.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"repetition_penalty": 1.1},
        {"logit_bias": True},
        {"grammar": True},
    ],
)
def test_untrainable_sampling(changes: dict[str, float]) -> None:
    assert not sampling_trainable(
        msgspec.structs.replace(SAMPLING, **changes), LogprobsMode.processed
    )


def test_raw_logprobs_are_the_policys_only_at_temperature_one() -> None:
    warm = msgspec.structs.replace(SAMPLING, temperature=0.7)
    assert sampling_trainable(warm, LogprobsMode.processed)
    assert not sampling_trainable(warm, LogprobsMode.raw)
    assert sampling_trainable(SAMPLING, LogprobsMode.raw)


TOKENS = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)
MOVES = st.sampled_from(["extend", "again", "anew"])
PLANS = st.lists(
    st.tuples(
        TOKENS,
        st.lists(TOKENS, min_size=1, max_size=2),
        MOVES,
        st.sampled_from(["", "critic"]),
        st.booleans(),
    ),
    max_size=8,
)
"""What each call is: its new tokens, its answers, how it follows what was said, its role, and
whether the one before had ended.
"""


def conversation(
    plan: list[tuple[tuple[int, ...], list[tuple[int, ...]], str, str, bool]],
) -> list[LlmCall]:
    """Calls of one attempt, some of which ask the same again."""
    said: tuple[int, ...] = ()
    prompt: tuple[int, ...] = (1,)
    calls: list[LlmCall] = []
    at = 1_000
    for turn, (tokens, answers, move, agent, ended) in enumerate(plan):
        prompt = said + tokens if move == "extend" else prompt if move == "again" else tokens
        at += 10 if ended else 1
        calls.append(make_call(turn=turn, at=at, prompt=prompt, answers=answers, agent=agent))
        said = prompt + answers[-1]
    return calls


@given(PLANS, st.randoms())
def test_every_action_carries_loss_in_exactly_one_row_or_is_left_out_with_a_reason(
    plan: list[tuple[tuple[int, ...], list[tuple[int, ...]], str, str, bool]], random: Random
) -> None:
    calls = conversation(plan)
    episode = episode_of(*calls)
    built = build_trajectories(episode)
    trained = Counter(
        action_id(action.call_id, action.choice)
        for row in built.rows
        for action in row.actions
        if action.loss
    )
    lost = Counter(lost.action for lost in built.left_out)
    assert trained + lost == Counter(
        action for call in episode.calls for action in successful_actions(call)
    )
    assert {lost.reason for lost in built.left_out} <= {FilterReason.superseded}
    random.shuffle(calls)
    assert build_trajectories(episode_of(*calls)) == built
    answers_of = {
        action_id(call.call_id, choice.index): choice.token_ids
        for call in calls
        for choice in call.choices
    }
    prompts = {call.call_id: call.prompt_token_ids for call in calls}
    for row in built.rows:
        for action in row.actions:
            name = action_id(action.call_id, action.choice)
            assert row.token_ids[action.start * 4 : action.end * 4] == answers_of[name]
            assert row.token_ids[: action.start * 4] == prompts[action.call_id]
    assert {action for path in paths(built.rows) for action in path} == set(trained)
    assert build_trajectories(episode) == built
