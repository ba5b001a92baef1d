"""Rows that nobody should have written: told, and without effect on the rows that can be trained."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.episodes.stitching import stitch
from fulgurite.events import Tombstone, Trajectory
from fulgurite.groups.closing import close_group
from fulgurite.learning.batching import BatchGroup, BatchRules, RowBatcher
from fulgurite.tokens import pack_ids
from fulgurite.versions import base_version
from services.learner.rows import oddity, without_actions
from tests.services.learner.batches import train_rows
from tests.synthetic import make_call, make_declared, make_reward, make_status


def rows() -> list[Trajectory]:
    declared = make_declared(0, 2)
    episodes = [
        stitch(
            [
                declared,
                make_call(0, index),
                make_call(0, index, 1, prompt=(1, 2, 3, 7, 9, 5)),
                make_status(0, index),
            ]
        )
        for index in (0, 1)
    ]
    closed = close_group(
        declared.group_id,
        declared.declaration,
        [e for e in episodes if e],
        [make_reward(0, 0, 1.0), make_reward(0, 1, 0.0)],
    )
    return [output for output in closed if isinstance(output, Trajectory)]


ROW = rows()[0]
ACTION = ROW.actions[0]


def altered(**changes: object) -> Trajectory:
    return msgspec.structs.replace(
        ROW, actions=(msgspec.structs.replace(ACTION, **changes), *ROW.actions[1:])
    )


VOCABULARY = 1_000
"""Tokens of the model."""

ODD = {
    "tokens": msgspec.structs.replace(ROW, token_ids=ROW.token_ids[:-1]),
    "not of the model": msgspec.structs.replace(ROW, token_ids=pack_ids([1, 2, VOCABULARY])),
    "negative token": msgspec.structs.replace(ROW, token_ids=pack_ids([1, -2, 3])),
    "start": altered(start=-1),
    "first token": altered(start=0),
    "order": altered(start=5, end=4),
    "end": altered(end=10_000),
    "logprobs": altered(logprobs=b"1234567"),
    "temperature": altered(temperature=math.inf),
    "negative": altered(temperature=-1.0),
}


def settled(batcher: RowBatcher) -> tuple[BatchGroup, ...]:
    version = base_version("policy")
    return (*batcher.next_batch(version), *batcher.without_signal(version))


def test_rows_of_the_rewarder_are_not_odd() -> None:
    assert [oddity(row, VOCABULARY) for row in rows()] == [None, None]


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_told_and_left_out(name: str) -> None:
    assert oddity(ODD[name], VOCABULARY)
    plain = without_actions(ODD[name])
    assert oddity(plain, VOCABULARY) is None
    batcher = RowBatcher("policy", BatchRules(groups_per_step=1))
    for offset, row in enumerate([plain, rows()[1]]):
        batcher.add(0, offset, row)
    (group,) = settled(batcher)
    assert all(math.isfinite(reward) for reward in group.rewards)
    assert len(group.rewards) == 2
    assert len(train_rows([group])) == 1


def test_a_tombstone_is_never_odd() -> None:
    closed = close_group(
        "g",
        make_declared(0, 1).declaration,
        [e for e in [stitch([make_declared(0, 1), make_status(0, 0)])] if e],
        [],
    )
    (stone,) = [output for output in closed if isinstance(output, Tombstone)]
    assert oddity(stone, VOCABULARY) is None
    assert without_actions(stone) == stone


@given(
    st.binary(max_size=64),
    st.integers(-5, 20),
    st.integers(-5, 20),
    st.none() | st.binary(max_size=40),
    st.floats(),
    st.floats(),
    st.none() | st.floats(),
)
def test_what_is_not_odd_can_be_trained(
    tokens: bytes,
    start: int,
    end: int,
    logprobs: bytes | None,
    credit: float,
    temperature: float,
    reward: float | None,
) -> None:
    action = msgspec.structs.replace(
        ACTION, start=start, end=end, logprobs=logprobs, credit=credit, temperature=temperature
    )
    row = msgspec.structs.replace(ROW, token_ids=tokens, actions=(action,), episode_reward=reward)
    batcher = RowBatcher("policy", BatchRules(groups_per_step=1))
    kept = row if oddity(row, VOCABULARY) is None else without_actions(row)
    for offset, one in enumerate([kept, rows()[1]]):
        batcher.add(0, offset, one)
    for trained in train_rows(settled(batcher)):
        assert np.isfinite(trained.advantages).all()
        assert np.isfinite(trained.behaviour_logprobs).all()
