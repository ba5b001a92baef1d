"""What a run makes of events, without agents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fulgurite.enums import FilterReason, LedgerTerm, Mode, UpdateKind
from fulgurite.episodes.stitching import stitch
from fulgurite.events import LedgerEntry, PolicyUpdate
from fulgurite.learning.learners import Learners
from services.common.kafka.settings import KafkaSettings
from services.runner.options import RunOptions
from services.runner.progress import JsonWatcher
from services.runner.run import Run
from services.runner.run_warnings import Warnings
from services.runner.settings import RunnerSettings
from tests.synthetic import group_id, make_call, make_status, rollout_id


def made(
    say: Callable[[str], None] = lambda _: None, *, policy: str = "writer", **options: Any
) -> Run:
    """A run of the policy, of which nothing was started."""
    return Run(
        RunOptions(tasks=Path("t"), command=("agent",), run_id="r", **options),
        RunnerSettings(policy=policy),
        KafkaSettings(),
        JsonWatcher(say),
    )


def claim(config: str) -> PolicyUpdate:
    """Of the learner of `writer`."""
    return PolicyUpdate(
        event_id="claim",
        event_time=1,
        policy="writer",
        kind=UpdateKind.claim,
        epoch=1,
        step=0,
        learner_id="l",
        trained_actions=0,
        config=config,
    )


@pytest.mark.parametrize(
    ("policies", "ahead"), [(("critic",), 0), (("critic", "writer"), 1), ((), 1)]
)
def test_a_group_that_only_other_policies_answered_waits_for_no_learner(
    policies: tuple[str, ...], ahead: int
) -> None:
    run = made()
    run.pace.start(group_id(0), 10_000)
    for index in (0, 1):
        run.board.expect(group_id(0), rollout_id(0, index))
    for index in (0, 1):
        assert run.pace.ahead == 1, "the other rollout goes on"
        calls = [
            make_call(0, index, turn, policy=policy, version=f"{policy}@0.0")
            for turn, policy in enumerate(policies)
        ]
        episode = stitch([*calls, make_status(0, index)])
        assert episode is not None
        run.on_event(episode)
    assert run.pace.ahead == ahead


@pytest.mark.parametrize(
    ("given", "mode", "expert", "ahead"),
    [
        (None, Mode.train, None, 15),
        (4, Mode.train, None, 4),
        (None, Mode.val, None, None),
        (None, Mode.train, "expert.py:answer", None),
    ],
)
def test_a_batch_and_a_half_may_wait_for_the_learner(
    given: int | None, mode: Mode, expert: str | None, ahead: int | None
) -> None:
    run = made(max_ahead=given, mode=mode, expert=expert)
    run.on_event(claim('{"batch": {"groups": 10}}'))
    assert run.pace.max_ahead == ahead


def test_a_learner_that_has_stopped_is_told_once() -> None:
    said: list[str] = []
    run = made(said.append)
    run.board.expect(group_id(0), rollout_id(0, 0))
    for number, (policy, reason) in enumerate(
        [
            ("checker", FilterReason.no_signal),
            ("checker", FilterReason.drifted),
            ("checker", FilterReason.drifted),
            ("writer", FilterReason.collapsed),
        ]
    ):
        run.on_event(
            LedgerEntry(
                event_id=str(number),
                event_time=1,
                policy=policy,
                group_id=group_id(0),
                term=LedgerTerm.filtered,
                reason=reason,
                source="learner",
            )
        )
    said = [line for line in said if '"warning"' in line]
    assert [("checker" in line, "writer" in line) for line in said] == [
        (True, False),
        (False, True),
    ]
    assert "drift.stop" in said[0]


def test_a_run_that_is_stopped_tells_what_it_waited_for() -> None:
    run = made(policy="policy", rewards={"reward": "builtin:f1"})
    run.board.expect(group_id(0), rollout_id(0, 0))
    run.ended = 1
    assert run.summary(interrupted=True).warnings == [], "it may still come"
    run.began -= 60
    [warning] = run.summary(interrupted=True).warnings
    assert "1 rollouts have ended and have no episode yet: is the aggregator running?" in warning


@pytest.mark.parametrize(
    ("n", "baseline", "warned"),
    [(1, "group", True), (2, "group", False), (1, "batch", False), (1, "moving_average", False)],
)
def test_groups_of_one_are_warned_of_where_nothing_is_compared_with_them(
    n: int, baseline: str, warned: bool
) -> None:
    said: list[str] = []
    learners = Learners()
    learners.on_update(claim(f'{{"batch": {{"baseline": "{baseline}"}}}}'))
    run = made(n=n)
    Warnings(said.append).of_options(run.options, "writer", learners)
    assert [line.partition(":")[0] for line in said] == ["-n 1"] * warned
