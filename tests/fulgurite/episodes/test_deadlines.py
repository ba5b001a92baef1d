"""Verdicts: which attempts get one, and that a repeated verdict is the same event."""

from __future__ import annotations

import msgspec

from fulgurite.enums import Mode, StatusKind
from fulgurite.episodes.deadlines import AttemptProgress, overdue, silent
from fulgurite.failures import FailureKind
from tests.synthetic import group_id, make_declared, rollout_id


def test_open_promised_and_silent_attempts_are_timed_out() -> None:
    declared = make_declared(size=4, max_attempts=2)
    heard = {
        rollout_id(0, 0): [AttemptProgress(attempt=0, ended=True)],
        rollout_id(0, 1): [
            AttemptProgress(attempt=1, ended=False),
            AttemptProgress(attempt=0, ended=False),
        ],
        rollout_id(0, 2): [AttemptProgress(attempt=0, ended=True, will_retry=True)],
    }
    verdicts = overdue(declared, heard)
    assert [
        (verdict.rollout_id, verdict.attempt, verdict.failure, verdict.will_retry)
        for verdict in verdicts
    ] == [
        (rollout_id(0, 1), 0, FailureKind.agent_timeout, True),
        (rollout_id(0, 1), 1, FailureKind.agent_timeout, False),
        (rollout_id(0, 2), 1, FailureKind.agent_silent, False),
        (rollout_id(0, 3), 0, FailureKind.agent_silent, False),
    ]
    assert {verdict.event_time for verdict in verdicts} == {10_000}
    assert {verdict.kind for verdict in verdicts} == {StatusKind.timed_out}
    assert overdue(declared, heard) == verdicts
    assert len({verdict.event_id for verdict in verdicts}) == 4


def test_a_rollout_that_used_up_its_attempts_is_not_waited_for() -> None:
    heard = {rollout_id(0, 0): [AttemptProgress(attempt=0, ended=True, will_retry=True)]}
    assert overdue(make_declared(size=1, max_attempts=1), heard) == ()


def test_without_a_declaration_nothing_is_overdue() -> None:
    assert overdue(msgspec.structs.replace(make_declared(), declaration=None), {}) == ()


def test_silence_is_no_failure() -> None:
    verdict = silent(
        group_id=group_id(0),
        rollout_id=rollout_id(0, 0),
        attempt=0,
        mode=Mode.live,
        last_event_time=1_000,
        silence_ms=500,
    )
    assert (verdict.event_time, verdict.failure, verdict.kind) == (
        1_500,
        None,
        StatusKind.timed_out,
    )
