"""What the end of a process means, and what is tried again."""

from __future__ import annotations

import signal

import pytest

from fulgurite.enums import StatusKind
from fulgurite.failures import FailureKind
from services.common.processes.fork_server import ProcessResult
from services.runner.exit_classes import ExitClass, classify_exit, will_retry


def _ended(exit_code: int, error_output: str = "", overdue: bool = False) -> ProcessResult:
    return ProcessResult(exit_code, overdue, "", error_output, 1.0)


@pytest.mark.parametrize(
    ("ended", "failure"),
    [
        (
            _ended(1, "Traceback ...\nopenai.APIConnectionError: Connection error."),
            FailureKind.upstream_error,
        ),
        (
            _ended(1, "Traceback ...\nopenai.InternalServerError: Error code: 503 - {}"),
            FailureKind.upstream_error,
        ),
        (_ended(1, "openai.APITimeoutError: Request timed out."), FailureKind.upstream_timeout),
        (_ended(1, "openai.RateLimitError: Error code: 429"), FailureKind.rate_limited),
        (_ended(1, "openai.BadRequestError: Error code: 400"), FailureKind.agent_exception),
        (_ended(1, "KeyError: 'openai.RateLimitError: '"), FailureKind.agent_exception),
        (
            _ended(1, "openai.RateLimitError: first\nthen something else"),
            FailureKind.agent_exception,
        ),
        (_ended(2), FailureKind.agent_exception),
        (_ended(75), FailureKind.infrastructure),
        (_ended(127, "agent: No such file or directory"), FailureKind.infrastructure),
        (_ended(-signal.SIGKILL), FailureKind.infrastructure),
        (_ended(-signal.SIGSEGV), FailureKind.agent_exception),
        (_ended(-signal.SIGTERM, overdue=True), FailureKind.agent_timeout),
        (_ended(0, overdue=True), FailureKind.agent_timeout),
    ],
)
def test_failures_are_told_apart(ended: ProcessResult, failure: FailureKind) -> None:
    exit_class = classify_exit(ended)
    assert (exit_class.kind, exit_class.failure) == (StatusKind.failed, failure)
    assert exit_class.message


def test_exit_code_0_is_finished_whatever_was_written_to_standard_error() -> None:
    assert classify_exit(_ended(0, "openai.RateLimitError: and mended")) == ExitClass(
        StatusKind.finished
    )


@pytest.mark.parametrize(
    ("failure", "attempt", "max_attempts", "again"),
    [
        (FailureKind.upstream_error, 0, 3, True),
        (FailureKind.upstream_error, 1, 3, True),
        (FailureKind.upstream_error, 2, 3, False),
        (FailureKind.infrastructure, 0, 1, False),
        (FailureKind.agent_exception, 0, 3, False),
        (FailureKind.agent_timeout, 0, 3, False),
        (FailureKind.cancelled, 0, 3, False),
        (None, 0, 3, False),
    ],
)
def test_only_exogenous_failures_are_tried_again(
    failure: FailureKind | None, attempt: int, max_attempts: int, again: bool
) -> None:
    assert will_retry(ExitClass(StatusKind.failed, failure), attempt, max_attempts) is again
