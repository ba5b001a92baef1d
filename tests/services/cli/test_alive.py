"""Which services are running, from groups, pulse files and what they last wrote."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import ApplyOutcome, UpdateKind
from fulgurite.events import PolicyApplied, PolicyUpdate
from services.cli import alive
from services.cli.alive import ago, appliers, finished, learners, processors, progress
from services.common.runtime.clock import now_ms
from services.local_stack.exports import StackLock


def update(step: int, at: int = 0, **metrics: float) -> PolicyUpdate:
    return PolicyUpdate(
        event_id=str(step), event_time=at or now_ms(), policy="policy", kind=UpdateKind.update if step else UpdateKind.claim, epoch=1,
        step=step, version=f"policy@1.{step}" if step else None, learner_id="l", trained_actions=0, metrics=metrics,
    )  # fmt: skip


def applied(backend: str) -> PolicyApplied:
    return PolicyApplied(
        event_id=backend, event_time=now_ms(), policy="policy", backend=backend, engine_id="e", version="policy@1.1",
        outcome=ApplyOutcome.applied, seconds=0.1,
    )  # fmt: skip


def test_processors_are_members_of_their_groups() -> None:
    groups = {
        "f.aggregator": "stable",
        "f.rewarder": "empty",
        "f.reward-worker.run-1.reward": "stable",
        "f.judge.all.x": "empty",
    }
    found = {one.service: (one.alive, one.said) for one in processors("f.", groups)}
    assert found["aggregator"] == (True, "running")
    assert found["rewarder"][0] is False
    assert "not running" in found["rewarder"][1]
    assert found["reward workers"] == (None, "1 running")
    assert found["judges"] == (None, "none running")
    assert [one.alive for one in processors("f.", {})][:2] == [False, False]


@pytest.mark.parametrize(
    ("group", "state", "over"),
    [
        ("f.reward-worker.run-1.reward", "empty", True),
        ("f.judge.run-1.judge", "dead", True),
        ("f.reward-worker.run-1.reward", "stable", False),
        ("f.reward-worker.all.reward", "empty", False),
        ("f.aggregator", "empty", False),
    ],
)
def test_what_a_run_that_is_over_left_behind(group: str, state: str, over: bool) -> None:
    assert finished("f.", group, state) == over


def test_progress_is_the_last_word_of_each_learner() -> None:
    (one,) = progress(
        [update(0, 5), update(1), update(2, 7, groups=8.0, groups_with_signal=2.0, reward_mean=0.5)]
    )
    assert (one.version, one.updated_at, one.claimed_at, one.groups, one.groups_with_signal) == (
        "policy@1.2",
        7,
        5,
        8,
        2,
    )
    (said,) = learners([one])
    assert "mean reward 0.500, 2 of 8 groups with a training signal" in said.said
    (fresh,) = learners(progress([update(0)]))
    assert "no update yet" in fresh.said
    (never,) = learners(progress([]))
    assert "never started" in never.said


def test_a_learner_that_was_superseded_says_nothing_of_progress() -> None:
    claims = [
        msgspec.structs.replace(update(0), event_id=f"claim {epoch}", epoch=epoch, learner_id=name)
        for epoch, name in ((1, "first"), (2, "second"))
    ]
    newer = msgspec.structs.replace(
        update(1), epoch=2, learner_id="second", version="policy@2.1", event_id="newer"
    )
    late = msgspec.structs.replace(update(2), learner_id="first")
    assert [one.version for one in progress([*claims, newer, late])] == ["policy@2.1"]


def test_a_pulse_is_worth_something_while_its_stack_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULGURITE_DATA_DIR", str(tmp_path))
    assert appliers([])[0].alive is None
    pulse = tmp_path / "run" / "applier.pulse"
    pulse.parent.mkdir()
    pulse.touch()
    assert appliers([applied("vllm")])[0].alive is False
    lock = StackLock(tmp_path)
    lock.acquire()
    try:
        assert appliers([applied("vllm")])[0].alive is True
        long_ago = time.time() - 60
        os.utime(pulse, (long_ago, long_ago))
        (silent,) = appliers([applied("vllm")])
        assert silent.alive is False
        assert "applier.log" in silent.said
    finally:
        lock.release()
    assert [one.service for one in appliers([applied("east"), applied("west")])] == [
        "applier of east",
        "applier of west",
    ]


def test_each_of_several_learners_has_a_pulse_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULGURITE_DATA_DIR", str(tmp_path))
    (tmp_path / "run").mkdir()
    for name in ("learner-policy", "learner"):
        (tmp_path / "run" / f"{name}.pulse").touch()
    long_ago = time.time() - 10_000
    os.utime(tmp_path / "run" / "learner.pulse", (long_ago, long_ago))
    lock = StackLock(tmp_path)
    lock.acquire()
    try:
        (own,) = learners(progress([update(0)]))
        assert own.alive is True
        (tmp_path / "run" / "learner-policy.pulse").unlink()
        (shared,) = learners(progress([update(0)]))
        assert shared.alive is False
    finally:
        lock.release()


@given(st.integers(0, 10**9))
def test_how_long_ago(seconds: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alive, "now_ms", lambda: seconds * 1000)
        said = ago(0)
    number, unit, _ = said.split()
    length, rounded = {"s": (1, 0), "min": (60, 30), "h": (3600, 181), "days": (86400, 43200)}[unit]
    assert abs(float(number) * length - seconds) <= rounded
