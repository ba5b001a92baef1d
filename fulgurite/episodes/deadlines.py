"""Finds attempts that never reported their end.

In declared groups these are overdue, in undeclared traffic silent.

They get `timed_out` statuses with derived ids and event times, so that a repeated status is the
same event. These depend on event time only; the caller decides when the log has been read far
enough. They are published and read back like any status, so that a replay finds them in the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fulgurite.enums import Mode, StatusKind
from fulgurite.events import AgentStatus, EventStruct
from fulgurite.failures import FailureKind
from fulgurite.ids import derive_id

SOURCE = "aggregator"


class AttemptProgress(EventStruct, frozen=True, kw_only=True):
    """What is known of an attempt's end."""

    attempt: int
    """Try at the rollout, from 0."""
    ended: bool
    """Whether a terminal status is known."""
    will_retry: bool = False
    """Whether that status promised another attempt."""


def overdue(
    declared: AgentStatus, heard: Mapping[str, Iterable[AttemptProgress]]
) -> tuple[AgentStatus, ...]:
    """Make `timed_out` statuses at a declared group's deadline, for attempts that are open or
    promised.

    `heard`: by rollout, every known attempt. A rollout without any is `agent_silent`.
    """
    if declared.declaration is None:
        return ()
    statuses: list[AgentStatus] = []
    for rollout_id in declared.declaration.rollout_ids:
        attempts = sorted(heard.get(rollout_id, ()), key=lambda progress: progress.attempt)
        last = attempts[-1].attempt if attempts else -1
        statuses.extend(
            _timed_out(
                declared,
                rollout_id,
                progress.attempt,
                FailureKind.agent_timeout,
                progress.attempt < last,
            )
            for progress in attempts
            if not progress.ended
        )
        promised = (
            bool(attempts)
            and attempts[-1].ended
            and attempts[-1].will_retry
            and last + 1 < declared.declaration.max_attempts
        )
        if promised or not attempts:
            statuses.append(
                _timed_out(declared, rollout_id, last + 1, FailureKind.agent_silent, False)
            )
    return tuple(statuses)


def _timed_out(
    declared: AgentStatus, rollout_id: str, attempt: int, failure: FailureKind, will_retry: bool
) -> AgentStatus:
    deadline = declared.declaration.deadline if declared.declaration else declared.event_time
    return AgentStatus(
        event_id=derive_id("overdue", declared.event_id, rollout_id, attempt),
        event_time=deadline,
        group_id=declared.group_id,
        rollout_id=rollout_id,
        attempt=attempt,
        mode=declared.mode,
        kind=StatusKind.timed_out,
        source=SOURCE,
        failure=failure,
        message="no terminal status by the group's deadline",
        will_retry=will_retry,
    )


def silent(
    *,
    group_id: str,
    rollout_id: str,
    attempt: int,
    mode: Mode,
    last_event_time: int,
    silence_ms: int,
) -> AgentStatus:
    """Make the `timed_out` status that ends silent undeclared traffic. It is no failure."""
    return AgentStatus(
        event_id=derive_id("silent", rollout_id, attempt, last_event_time),
        event_time=last_event_time + silence_ms,
        group_id=group_id,
        rollout_id=rollout_id,
        attempt=attempt,
        mode=mode,
        kind=StatusKind.timed_out,
        source=SOURCE,
        message="undeclared traffic fell silent",
        will_retry=False,
    )
