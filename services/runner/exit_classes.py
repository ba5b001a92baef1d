"""Classifies how an agent process ended: finished or failed, the failure kind, and whether to
retry.

Only failures that the policy did not cause are retried; retrying others would be survivor bias.
They are recognised by the exception on the last line of standard error. An agent in any language
can report one with exit code 75 (`EX_TEMPFAIL`).
"""

from __future__ import annotations

import re
import signal

import msgspec

from fulgurite.enums import StatusKind
from fulgurite.failures import EXOGENOUS, FailureKind
from services.common.processes.fork_server import ProcessResult

EX_TEMPFAIL = 75
_NOT_STARTED = 127

_EXCEPTIONS = {
    "APITimeoutError": FailureKind.upstream_timeout,
    "APIConnectionError": FailureKind.upstream_error,
    "InternalServerError": FailureKind.upstream_error,
    "RateLimitError": FailureKind.rate_limited,
    "ConnectError": FailureKind.upstream_error,
    "ReadTimeout": FailureKind.upstream_timeout,
}
_LAST_EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Za-z_]\w*)(?::|$)")


class ExitClass(msgspec.Struct, frozen=True):
    """The status to report for an attempt."""

    kind: StatusKind
    failure: FailureKind | None = None
    message: str | None = None


def classify_exit(result: ProcessResult) -> ExitClass:
    """Classify the end of a process that ran."""
    if result.is_overdue:
        return ExitClass(
            StatusKind.failed,
            FailureKind.agent_timeout,
            f"killed at its deadline after {result.seconds:.1f} s",
        )
    if result.exit_code == 0:
        return ExitClass(StatusKind.finished)
    lines = [line for line in result.error_output.strip().splitlines() if line.strip()]
    message = (
        result.error_output.strip() or f"exit code {result.exit_code}, nothing on standard error"
    )
    if result.exit_code in (EX_TEMPFAIL, _NOT_STARTED, -signal.SIGKILL):
        # SIGKILL from outside: on most machines the kernel, because memory ran out.
        return ExitClass(StatusKind.failed, FailureKind.infrastructure, message)
    found = _LAST_EXCEPTION.match(lines[-1]) if lines else None
    known = _EXCEPTIONS.get(found[1]) if found else None
    return ExitClass(StatusKind.failed, known or FailureKind.agent_exception, message)


def will_retry(exit_class: ExitClass, attempt: int, max_attempts: int) -> bool:
    """Whether another attempt follows attempt number `attempt` (from 0)."""
    return (
        exit_class.failure in EXOGENOUS
        and exit_class.failure is not FailureKind.cancelled
        and attempt + 1 < max_attempts
    )
