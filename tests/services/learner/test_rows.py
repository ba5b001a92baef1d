"""Training rows of groups: how tokens weigh, and what a run that promised one row refuses."""

from __future__ import annotations

from typing import Any

import pytest

from fulgurite.learning.batching import BatchEpisode, BatchGroup, BatchRow, TrainedAction
from fulgurite.tokens import pack_ids, pack_logprobs
from services.learner.config import RunConfig
from services.learner.errors import IncompatibleObjective
from services.learner.rows import mini_batches


def row(action: str, tokens: int) -> BatchRow:
    """A row of one action of so many tokens, behind one that is given."""
    trained = TrainedAction(
        action=action,
        start=1,
        end=1 + tokens,
        logprobs=pack_logprobs([-1.0] * tokens),
        credit=1.0,
        temperature=1.0,
    )
    return BatchRow(token_ids=pack_ids(range(1 + tokens)), actions=(trained,))


def group(*rows_of_episodes: tuple[BatchRow, ...]) -> BatchGroup:
    return BatchGroup(
        group_id="group",
        group_revision="revision",
        policy="policy",
        rewards=(1.0, 0.0),
        episodes=tuple(
            BatchEpisode(rollout_id=f"rollout-{n}", reward=1.0, rows=rows)
            for n, rows in enumerate(rows_of_episodes)
        ),
        outcomes={},
    )


def weights_of(one: BatchGroup, **algorithm: Any) -> list[float]:
    config = RunConfig.model_validate({"policy": {"model": "m"}, "algorithm": algorithm})
    advantages = {
        action.action: 0.5 for of in one.episodes for made in of.rows for action in made.actions
    }
    ((_, rows),) = mini_batches([one], advantages, config, 1)
    return [float(made.weights[made.trained].sum()) for made in rows]


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "gspo"])
def test_episodes_of_one_row_each_keep_the_promise(name: str) -> None:
    """Whatever their lengths, and however their tokens weigh."""
    one = group((row("a", 2),), (row("b", 6),))
    weights = weights_of(one, name=name, single_row_episodes=True)
    assert len(weights) == 2
    assert (weights == [0.5, 0.5]) is (name != "dr_grpo")


@pytest.mark.parametrize("name", ["dr_grpo", "gspo", "sapo"])
def test_episodes_of_several_rows_break_the_promise(name: str) -> None:
    """Even of equal length, where each row weighs as one of twice as many episodes."""
    one = group((row("a", 4), row("b", 4)), (row("c", 4), row("d", 4)))
    with pytest.raises(IncompatibleObjective, match=r"rollout-0 of group group has 2 rows"):
        weights_of(one, name=name, single_row_episodes=True)


def test_without_the_promise_episodes_may_have_several_rows() -> None:
    one = group((row("a", 4), row("b", 4)), (row("c", 8),))
    assert weights_of(one, name="grpo") == [0.25, 0.25, 0.5]
