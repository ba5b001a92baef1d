"""What a run says of itself when nothing of it is learned, and what it says of groups that are of
use.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import FilterReason, LedgerTerm, Mode, StatusKind, UpdateKind
from fulgurite.episodes.stitching import stitch
from fulgurite.events import AgentReward, Episode, LedgerEntry, PolicyUpdate, Sampling
from fulgurite.failures import FailureKind
from fulgurite.learning.learners import Learners
from fulgurite.trajectories.building import successful_actions
from services.runner.diagnosis import Diagnosis
from services.runner.options import RunOptions
from services.runner.outcomes import Outcomes
from services.runner.scoreboard import Scoreboard
from tests.synthetic import SAMPLING, group_id, make_call, make_reward, make_status, rollout_id


def claim(policy: str = "policy", **config: object) -> PolicyUpdate:
    """A learner's."""
    return PolicyUpdate(
        event_id="claim", event_time=1, policy=policy, kind=UpdateKind.claim, epoch=1, step=0, learner_id="l", trained_actions=0,
        config=json.dumps({"groups_per_step": 8, "max_row_tokens": 4096, **config}),
    )  # fmt: skip


class Told:
    """A run's bookkeeping, fed with events as the log has them."""

    def __init__(
        self,
        *,
        n: int = 2,
        mode: Mode = Mode.train,
        rewarded: bool = True,
        policy: str = "policy",
        baseline: str = "group",
        expert: str | None = None,
    ) -> None:
        rewards = {"reward": "builtin:f1"} if rewarded else {}
        self.options = RunOptions(
            tasks=Path("t"),
            command=("agent",),
            run_id="r",
            n=n,
            mode=mode,
            rewards=rewards,
            updates=1,
            expert=expert,
        )
        self.learners = Learners()
        self.learners.on_update(
            claim(batch={"groups": 8, "max_row_tokens": 4096, "baseline": baseline})
        )
        self.board = Scoreboard(rewards, {})
        self.outcomes = Outcomes(self.learners, rewarded=rewarded)
        self.diagnosis = Diagnosis(self.options, policy, self.board, self.outcomes, self.learners)

    def group(
        self,
        number: int,
        rewards: Sequence[float | None] = (),
        *,
        failure: FailureKind | None = None,
        calls: bool = True,
        policy: str | None = "policy",
        sampling: Sampling = SAMPLING,
        finish: str = "stop",
        prompt: Sequence[int] | None = (1, 2, 3),
    ) -> None:
        """A group that has ended, with rewards; None is one that could not be computed."""
        for index in range(self.options.n):
            self.board.expect(group_id(number), rollout_id(number, index))
        for index in range(self.options.n):
            mode = self.options.mode
            status = make_status(
                number,
                index,
                StatusKind.failed if failure else StatusKind.finished,
                failure=failure,
                mode=mode,
            )
            call = make_call(
                number,
                index,
                policy=policy,
                sampling=sampling,
                finish=finish,
                mode=mode,
                prompt=prompt,
            )
            episode = stitch([call, status] if calls else [status])
            assert isinstance(episode, Episode)
            self.board.on_episode(episode)
            self.outcomes.on_episode(episode)
        for index, value in enumerate(rewards):
            self.board.on_reward(self.reward(number, index, value))
        self.diagnosis.note(group_id(number))

    def reward(self, number: int, index: int, value: float | None) -> AgentReward:
        """Of a rollout; without a value it is an error."""
        error = None if value is not None else "ZeroDivisionError: division by zero"
        return msgspec.structs.replace(
            make_reward(number, index), value=value, error=error, final=True, name="reward"
        )

    def ledger(
        self,
        number: int,
        term: LedgerTerm,
        reason: FilterReason | None = None,
        source: str = "learner",
    ) -> None:
        """What became of all actions of a group."""
        actions = tuple(
            action
            for index in range(self.options.n)
            for action in successful_actions(make_call(number, index))
        )
        self.outcomes.on_ledger(
            LedgerEntry(
                event_id=f"{number}{term}{source}", event_time=1, policy="policy", group_id=group_id(number), term=term, reason=reason,
                actions=actions, source=source,
            )
        )  # fmt: skip

    @property
    def text(self) -> str:
        """All that is said."""
        return "\n".join(self.diagnosis.warnings(0))


GREEDY = msgspec.structs.replace(SAMPLING, temperature=0.0)


@pytest.mark.parametrize(
    ("told", "group", "said"),
    [
        (Told(), {"rewards": (1.0, 1.0)}, ["0 of 2 actions trained: 2 no_signal", "no_signal (all rewards are 1)", "`-n`"]),
        (Told(n=1), {"rewards": (1.0,)}, ["0 of 1 actions trained: 1 no_baseline", "`-n 2` or more"]),
        (Told(), {"rewards": (None, None)}, ["2 of 2 rollouts have no reward: 2 x ZeroDivisionError: division by zero", "2 reward_failed"]),
        (Told(), {"rewards": (0.0, 1.0), "sampling": GREEDY}, ["2 untrainable_sampling", "temperature 1"]),
        (Told(), {"rewards": (0.0, 1.0), "finish": "length"}, ["2 truncated", "max_tokens"]),
        (Told(), {"rewards": (0.0, 1.0), "prompt": tuple(range(5_000))}, ["2 oversized", "batch.max_row_tokens"]),
        (Told(), {"rewards": (0.0, 1.0), "policy": None}, ["2 no_policy", "FULGURITE_ALIASES"]),
        (Told(), {"rewards": (0.0, 1.0), "policy": "policy2"}, ["2 no_learner", "no_learner (policy2)"]),
        (Told(), {"rewards": (0.0, 1.0), "failure": FailureKind.infrastructure}, ["2 failure_dropped", "2 of 2 rollouts failed"]),
        (Told(), {"rewards": (0.0, 0.0), "failure": FailureKind.agent_exception, "calls": False}, ["2 agent_exception", "OPENAI_BASE_URL"]),
        (Told(mode=Mode.val), {"rewards": (None, None)}, ["gave no measurement", "ZeroDivisionError"]),
        (Told(mode=Mode.val), {"rewards": (0.0, 0.0), "failure": FailureKind.agent_exception}, ["gave no measurement", "2 agent_exception"]),
    ],
)  # fmt: skip
def test_a_group_of_no_use_is_explained_with_a_remedy(
    told: Told, group: dict[str, object], said: list[str]
) -> None:
    told.group(1, **group)  # pyright: ignore[reportArgumentType]
    assert told.diagnosis.useless() == [group_id(1)]
    for words in said:
        assert words in told.text


@pytest.mark.parametrize(
    ("told", "rewards"),
    [
        (Told(), (0.0, 1.0)),
        (Told(rewarded=False), ()),
        (Told(n=1, baseline="batch"), (1.0,)),
        (Told(n=1, baseline="moving_average"), (1.0,)),
        (Told(mode=Mode.val), (0.0, 0.0)),
        (Told(mode=Mode.val), (1.0, None)),
    ],
    ids=[
        "signal",
        "rewards over REST",
        "one of its batch",
        "one of many batches",
        "val",
        "val, one failed",
    ],
)
def test_a_group_of_use_is_passed_over(told: Told, rewards: tuple[float | None, ...]) -> None:
    told.group(1, rewards)
    assert (told.diagnosis.useless(), told.text) == ([], "")


def test_an_experts_episodes_are_of_use_although_reinforcement_leaves_them_out() -> None:
    biased = msgspec.structs.replace(SAMPLING, logit_bias=True)
    for expert, useless in ((None, 1), ("expert.py:answer", 0)):
        told = Told(n=1, expert=expert)
        told.group(0, (1.0,), sampling=biased)
        assert len(told.diagnosis.useless()) == useless
    told = Told(n=1, expert="expert.py:answer")
    told.group(0, (None,))
    assert "1 of 1 rollouts have no reward" in told.text


def test_the_ledgers_word_counts_when_it_comes_and_a_learners_above_all() -> None:
    told = Told()
    told.group(1, (1.0, 1.0))
    told.ledger(1, LedgerTerm.trained)
    told.ledger(1, LedgerTerm.filtered, FilterReason.no_reward, source="rewarder")
    assert told.diagnosis.actions() == {"trained": 2}
    told.group(2, (0.0, 1.0))
    assert told.diagnosis.actions() == {"trained": 2, "waiting": 2}
    told.ledger(2, LedgerTerm.trained, source="offline")
    assert told.diagnosis.actions() == {"trained": 2, "waiting": 2}
    told.ledger(2, LedgerTerm.stale)
    assert told.diagnosis.actions() == {"trained": 2, "stale": 2}
    assert told.diagnosis.useless() == [group_id(2)]


@given(st.lists(st.booleans(), max_size=30))
def test_groups_in_a_row_are_counted_from_the_last(teaches: list[bool]) -> None:
    told = Told()
    for number, signal in enumerate(teaches):
        told.group(number, (0.0, float(signal)))
    row = list(reversed(teaches))
    assert len(told.diagnosis.useless()) == (row.index(True) if True in row else len(row))


def test_a_few_groups_without_signal_among_others_are_no_news() -> None:
    told = Told()
    told.group(0, (0.0, 1.0))
    for number in range(1, 8):
        told.group(number, (0.0, 0.0))
    assert told.text == ""
    told.group(8, (0.0, 0.0))
    assert "the last 8 groups gave no training signal" in told.text


def test_some_that_are_too_long_are_told_before_they_are_trained() -> None:
    told = Told()
    told.group(1, (0.0, 1.0))
    told.group(2, (0.0, 1.0), prompt=range(5_000))
    told.group(3, (0.0, 1.0))
    assert (
        told.text
        == "2 of 6 rollouts have rows longer than batch.max_row_tokens = 4096, which are not "
        "trained (oversized): raise it for the learner, or keep conversations shorter"
    )


def test_rewards_and_episodes_that_do_not_come_are_told() -> None:
    told = Told()
    told.group(1)
    told.board.expect(group_id(2), rollout_id(2, 0))
    said = "\n".join(told.diagnosis.warnings(3))
    assert "1 rollouts have ended and have no episode yet: is the aggregator running" in said
    assert (
        "2 rollouts have ended and wait for a reward. A function that returns None gives no reward"
        in said
    )


def test_versions_that_cannot_come_are_told() -> None:
    foreign = Told(policy="policy3")
    foreign.group(1, (0.0, 1.0))
    assert (
        "the run waits for versions of 'policy3' (FULGURITE_POLICY), but its calls were answered "
        "by policy" in (foreign.diagnosis.waits_in_vain() or "")
    )
    ours = Told()
    ours.group(1, (0.0, 1.0))
    assert ours.diagnosis.waits_in_vain() is None
    idle = Told()
    idle.learners = idle.diagnosis._learners = Learners()  # pyright: ignore[reportPrivateUsage]
    idle.group(1, (0.0, 1.0))
    assert idle.diagnosis.waits_in_vain() == "no learner has claimed the policy 'policy': start one"
