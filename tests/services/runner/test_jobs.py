"""The groups that another thread asks a run for, and what it gets back."""

from __future__ import annotations

import pytest

from services.runner.errors import RunnerError
from services.runner.jobs import JobQueue
from services.runner.scoreboard import Score
from tests.services.tuner.tuned_agent import make_episode


def test_a_result_has_scores_and_last_attempts() -> None:
    jobs = JobQueue()
    result = jobs.submit({"question": "a"}, "prompt@1")
    job = jobs.take()
    assert job is not None
    assert (job.task, job.prompt_version) == ({"question": "a"}, "prompt@1")
    assert jobs.take() is None
    first, last = make_episode(attempt=0, will_retry=True), make_episode(attempt=1)
    jobs.start(job, last.group_id, due_ms=100)
    jobs.note(first)
    jobs.note(last)
    jobs.note(make_episode(group=5))
    assert jobs.overdue(99) == []
    assert jobs.overdue(100) == [last.group_id]
    score = Score(last.group_id, last.rollout_id)
    jobs.finish(last.group_id, [score])
    jobs.finish(last.group_id, [])
    found = result.result(timeout=0)
    assert (found.group_id, found.scores, found.episodes) == (last.group_id, (score,), (last,))
    assert jobs.overdue(100) == []


def test_it_is_closed_once_all_that_was_asked_for_is_taken() -> None:
    jobs = JobQueue()
    jobs.submit({}, None)
    jobs.close()
    assert not jobs.is_closed
    jobs.take()
    assert jobs.is_closed


def test_what_is_open_when_the_run_ends_is_an_error() -> None:
    jobs = JobQueue()
    running, taken, waiting = (jobs.submit({}, None) for _ in range(3))
    job = jobs.take()
    assert job is not None
    jobs.start(job, "g", due_ms=0)
    assert jobs.take() is not None, "its group cannot be declared"
    jobs.end("the gateway is away")
    late = jobs.submit({}, None)
    for future in (running, taken, waiting, late):
        with pytest.raises(RunnerError, match="the gateway is away"):
            future.result(timeout=0)
