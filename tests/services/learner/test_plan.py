"""Every row is computed once, by one worker, and all workers have the same number of each thing."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.trajectories.forest import build
from services.learner.train_row import TrainRow

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from services.learner.engine.cpu_platform import select

    select("cpu")
    from services.learner.plan import plan_batch


def row(tokens: list[int]) -> TrainRow:
    ids = np.array(tokens, np.int32)
    zeros = np.zeros(len(ids), np.float32)
    return TrainRow(ids, np.arange(len(ids)) > 0, zeros, zeros, zeros, zeros + 1)


def nodes(rows: list[TrainRow], indices: list[int]) -> int:
    return len(build([rows[i].token_ids for i in indices], [rows[i].trained for i in indices]))


@given(
    rows=st.lists(st.lists(st.integers(1, 3), min_size=2, max_size=12), min_size=1, max_size=20),
    most=st.integers(2, 40),
    workers=st.integers(1, 5),
)
@settings(deadline=None)
def test_all_workers_have_the_same_number_of_bins_and_rows(
    rows: list[list[int]], most: int, workers: int
) -> None:
    given_rows = [row(tokens) for tokens in rows]
    plan = plan_batch(given_rows, most, workers)
    assert sorted(plan.order) == list(range(len(plan.rows)))
    assert plan.rows[: len(rows)] == given_rows
    assert not any(filler.trained.any() for filler in plan.rows[len(rows) :])
    assert len(plan.bins) % workers == 0
    assert len({len(one) for one in plan.bins}) == 1
    for one in plan.bins:
        assert nodes(plan.rows, one) <= max(most, *(len(plan.rows[i].token_ids) for i in one))
    assert plan.forest_tokens == sum(nodes(plan.rows, one) for one in plan.bins)
    per_worker = len(plan.bins) // workers
    if len(rows) >= workers:
        # Nobody stands idle where there is a row for everybody.
        for first in range(0, len(plan.bins), per_worker):
            share = plan.bins[first : first + per_worker]
            assert min(min(one) for one in share) < len(rows)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_work_is_shared_out_evenly(workers: int) -> None:
    chance = np.random.default_rng(0)
    rows = [row(list(chance.integers(1, 500, length))) for length in range(20, 84)]
    plan = plan_batch(rows, 100, workers)
    per_worker = len(plan.bins) // workers
    shares = [
        sum(nodes(plan.rows, one) for one in plan.bins[n * per_worker : (n + 1) * per_worker])
        for n in range(workers)
    ]
    assert max(shares) / min(shares) < 1.1
