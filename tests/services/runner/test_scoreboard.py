"""Rewards and outcomes of rollouts, in whatever order they come."""

from __future__ import annotations

import msgspec
import pytest

from fulgurite.enums import EpisodeOutcome, Mode
from fulgurite.events import AgentReward, Episode
from fulgurite.failures import FailureKind
from services.runner.scoreboard import Scoreboard
from tests.synthetic import make_call


def _episode(
    rollout: str, attempt: int = 0, will_retry: bool = False, failure: FailureKind | None = None
) -> Episode:
    return Episode(
        event_id=f"{rollout}{attempt}",
        event_time=0,
        episode_id=f"{rollout}/{attempt}",
        revision="x",
        group_id="g",
        rollout_id=rollout,
        attempt=attempt,
        mode=Mode.train,
        rule="1",
        outcome=EpisodeOutcome.failed if failure else EpisodeOutcome.finished,
        failure=failure,
        will_retry=will_retry,
        started_at=0,
        ended_at=1,
    )


def _reward(
    rollout: str,
    value: float | None,
    attempt: int | None = 0,
    name: str = "reward",
    final: bool = True,
    call: str | None = None,
) -> AgentReward:
    return AgentReward(
        event_id=f"{rollout}{value}",
        event_time=0,
        group_id="g",
        rollout_id=rollout,
        attempt=attempt,
        call_id=call,
        name=name,
        value=value,
        final=final,
        source="t",
    )


def _board(
    *rollouts: str, rewards: tuple[str, ...] = ("reward",), weights: dict[str, float] | None = None
) -> Scoreboard:
    board = Scoreboard(rewards, weights or {})
    for rollout in rollouts:
        board.expect("g", rollout)
    return board


@pytest.mark.parametrize("reward_first", [True, False])
def test_a_rollout_is_done_with_its_episode_and_its_reward(reward_first: bool) -> None:
    board = _board("a")
    steps = [lambda: board.on_reward(_reward("a", 1.0)), lambda: board.on_episode(_episode("a"))]
    for step in steps if reward_first else reversed(steps):
        assert board.open_groups() == {"g"}
        step()
    assert board.open_groups() == set()
    mean = board.mean()
    assert mean is not None
    assert mean.mean == 1.0


def test_without_a_reward_function_the_episode_is_enough() -> None:
    board = _board("a", rewards=())
    board.on_episode(_episode("a"))
    assert board.open_groups() == set()
    assert board.mean() is None


def test_an_attempt_that_is_tried_again_is_not_the_end() -> None:
    board = _board("a")
    board.on_episode(_episode("a", 0, will_retry=True, failure=FailureKind.upstream_error))
    assert board.open_groups() == {"g"}
    board.on_episode(_episode("a", 1))
    board.on_reward(_reward("a", 0.5, attempt=1))
    assert board.open_groups() == set()
    assert board.counts() == {"declared": 1, "finished": 1, "scored": 1, "calls": 0}


def test_a_reward_that_could_not_be_computed_ends_the_wait_and_is_no_score() -> None:
    board = _board("a", "b")
    for rollout, value in (("a", None), ("b", 1.0)):
        board.on_episode(_episode(rollout))
        board.on_reward(_reward(rollout, value))
    assert board.open_groups() == set()
    mean = board.mean()
    assert mean is not None
    assert (mean.mean, mean.count) == (1.0, 1)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e308, -1e39])
def test_a_reward_that_cannot_be_trained_on_is_no_score_and_says_why(value: float) -> None:
    board = _board("a", "b", weights={"style": 1e308})
    for rollout, paid in (("a", value), ("b", 1.0)):
        board.on_episode(_episode(rollout))
        board.on_reward(_reward(rollout, paid))
    assert board.open_groups() == set()
    assert [(row["reward"], row["error"] is None) for row in board.rows()] == [
        (None, False),
        (1.0, True),
    ]
    board.on_reward(_reward("b", 100.0, name="style"))
    assert board.rows()[1]["reward"] is None


def test_foreign_rollouts_and_other_rewards_are_ignored() -> None:
    board = _board("a")
    board.on_episode(_episode("z"))
    for event in (
        _reward("z", 1.0),
        _reward("a", 1.0, name="style"),
        _reward("a", 1.0, final=False),
    ):
        board.on_reward(event)
    assert board.counts() == {"declared": 1, "scored": 0, "calls": 0}


def test_other_named_rewards_are_components_and_count_by_their_weights() -> None:
    board = _board("a", "b", weights={"style": 0.5, "length": 0.0})
    for rollout, style in (("a", 1.0), ("b", 0.0)):
        board.on_reward(_reward(rollout, style, name="style"))
        board.on_reward(_reward(rollout, 100.0, name="length"))
        board.on_reward(_reward(rollout, 1.0))
    assert board.components() == {"length": 100.0, "style": 0.5}
    mean = board.mean()
    assert mean is not None
    assert mean.mean == 1.25


def test_a_rollout_waits_for_each_of_several_rewards_and_is_worth_their_sum() -> None:
    board = _board("a", rewards=("answer", "style"), weights={"style": 0.1})
    board.on_episode(_episode("a"))
    board.on_reward(_reward("a", 1.0, name="answer"))
    assert board.open_groups() == {"g"}
    assert board.mean() is None
    board.on_reward(_reward("a", 0.5, name="style"))
    assert board.open_groups() == set()
    assert board.rows()[0]["reward"] == 1.05
    assert board.components() == {"answer": 1.0, "style": 0.5}


def test_rewards_of_actions_are_part_of_the_sum() -> None:
    board = _board("a", weights={"steps": 0.5})
    call = make_call()
    paid = [
        _reward("a", 0.25, final=False, call=call.call_id),
        _reward("a", 1.0, final=False, name="steps", call=call.call_id),
        _reward("a", 9.0, final=False, call="of another attempt"),
        _reward("a", 0.0, name="steps"),
    ]
    for reward in paid:
        board.on_reward(reward)
    board.on_episode(msgspec.structs.replace(_episode("a"), calls=(call,)))
    assert board.open_groups() == {"g"}
    board.on_reward(_reward("a", 1.0))
    assert board.open_groups() == set()
    assert board.rows()[0]["rewards"] == {"reward": 1.25, "steps": 1.0}
    assert board.rows()[0]["reward"] == 1.75
    board.on_reward(_reward("a", 0.5, final=False, call=call.call_id))
    assert board.rows()[0]["reward"] == 2.0


def test_one_of_several_that_could_not_be_computed_leaves_no_sum() -> None:
    board = _board("a", rewards=("answer", "style"))
    board.on_episode(_episode("a"))
    board.on_reward(_reward("a", None, name="style"))
    board.on_reward(_reward("a", 1.0, name="answer"))
    assert board.open_groups() == set()
    assert board.mean() is None
    assert board.rows()[0]["rewards"] == {"style": None, "answer": 1.0}


def test_failures_are_counted_by_kind() -> None:
    board = _board("a", "b", "c")
    board.on_episode(_episode("a", failure=FailureKind.agent_exception))
    board.on_episode(_episode("b"))
    cut = msgspec.structs.replace(_episode("c"), failure=FailureKind.truncated)
    board.on_episode(cut)
    assert board.counts() == {
        "declared": 3,
        "agent_exception": 1,
        "finished": 2,
        "truncated": 1,
        "scored": 0,
        "calls": 0,
    }


def test_rollouts_are_counted_by_versions_of_the_runs_policy() -> None:
    board = Scoreboard(("reward",), {}, "writer")
    calls = (
        make_call(policy="critic", version="critic@1.3"),
        make_call(policy="writer", version="writer@1.1"),
        make_call(policy="writer", version="writer@1.2"),
    )
    for rollout, made in (("a", calls), ("b", calls[:1])):
        board.expect("g", rollout)
        board.on_episode(msgspec.structs.replace(_episode(rollout), calls=made))
        board.on_reward(_reward(rollout, 1.0))
    assert [point.version for point in board.curve()] == ["writer@1.1", "critic@1.3"]
    assert board.has_ended("g")
