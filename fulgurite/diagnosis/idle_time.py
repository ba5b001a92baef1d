"""Measures how much of a training run was idle: no call was in flight, and no step was running.

In a loop on one machine, generation and training share what there is. Time in which neither runs is
lost: agents start, groups wait for their last rollout, or a batch waits for groups.
"""

from __future__ import annotations

from collections.abc import Iterable

from fulgurite.enums import Mode, UpdateKind
from fulgurite.events import AgentStatus, LlmCall, PolicyUpdate

STEP_SECONDS = "step_seconds"
"""The metric of an update that says how long it took, from the batch to the version."""

_Span = tuple[int, int]
"""Begin and end, Unix milliseconds."""


def idle_share(
    run_id: str,
    last_version: str,
    statuses: Iterable[AgentStatus],
    calls: Iterable[LlmCall],
    updates: Iterable[PolicyUpdate],
) -> float | None:
    """The idle share of the time from a run's first rollout to the update that made its last
    version, 0 to 1; None where either is missing.

    A call is in flight from its request to the end of its answer, also while its engine is paused
    for a new version. All calls and steps count, not only the run's. Events may come in any order,
    and twice.
    """
    made = [update for update in updates if update.kind is UpdateKind.update]
    begin = min(
        (
            status.event_time
            for status in statuses
            if status.mode is Mode.train
            and status.declaration is not None
            and status.declaration.run_id == run_id
        ),
        default=None,
    )
    end = max((u.event_time for u in made if u.version == last_version), default=0)
    if begin is None or end <= begin:
        return None
    steps = [_step(update) for update in made]
    spans = [(call.started_at, call.finished_at) for call in calls]
    return 1 - _covered([*spans, *steps], begin, end) / (end - begin)


def _step(update: PolicyUpdate) -> _Span:
    """When the batch was trained and its version written."""
    seconds = update.metrics.get(STEP_SECONDS, 0.0)
    return update.event_time - round(1000 * seconds), update.event_time


def _covered(spans: Iterable[_Span], begin: int, end: int) -> int:
    """The milliseconds between begin and end that lie in a span at least."""
    covered, reached = 0, begin
    for start, stop in sorted(spans):
        first, last = max(start, reached), min(stop, end)
        if last > first:
            covered += last - first
            reached = last
    return covered
