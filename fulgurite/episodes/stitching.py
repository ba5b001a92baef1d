"""Builds the episode of one attempt from its calls and status events.

An episode is a function of the *set* of its inputs: their order, delay and duplication do not
matter. Inputs are the attempt's calls, its statuses without heartbeats and repeated `started`
(`adds_nothing`), and the group's declaration. The earliest terminal status, by event time and id,
says how the attempt ended. The failure is the one it reports, or one detected from the calls
(`fulgurite.episodes.detectors`). The revision is the hash of the rule's version and the sorted
input ids.

A revision supersedes another only if its inputs are a strict superset. Only the field `supersedes`
depends on history: the same inputs that come at once give the same episode with `supersedes` null.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fulgurite.enums import EpisodeOutcome, StatusKind
from fulgurite.episodes.detectors import failure_of
from fulgurite.episodes.episode_deltas import Expand
from fulgurite.events import AgentStatus, Episode, LlmCall
from fulgurite.ids import derive_id, episode_id

RULE = "stitch-2"
"""Version of the rule below; it is part of every revision."""

Input = LlmCall | AgentStatus

OUTCOMES = {
    StatusKind.finished: EpisodeOutcome.finished,
    StatusKind.failed: EpisodeOutcome.failed,
    StatusKind.timed_out: EpisodeOutcome.timed_out,
}
"""The terminal kinds of status, and the outcome each gives."""


def is_terminal(event: Input) -> bool:
    """Whether the event ends an attempt."""
    return (
        isinstance(event, AgentStatus) and event.kind in OUTCOMES and event.rollout_id is not None
    )


def is_input(event: Input) -> bool:
    """Whether the event is part of an episode; a heartbeat is not."""
    return (
        isinstance(event, LlmCall)
        or event.kind in OUTCOMES
        or event.kind in (StatusKind.started, StatusKind.declared)
    )


def adds_nothing(event: Input, held: Iterable[Input]) -> bool:
    """Whether a status is not an input, given the inputs before it in the log.

    Only the first `started` is one, and only before the end.
    """
    if not isinstance(event, AgentStatus) or event.kind is not StatusKind.started:
        return False
    return any(
        isinstance(other, AgentStatus) and (other.kind is StatusKind.started or is_terminal(other))
        for other in held
    )


def revision_of(inputs: Iterable[str]) -> str:
    """Revision id of an episode with these input ids, in any order."""
    return derive_id(RULE, *sorted(inputs))


def stitch(events: Iterable[Input], expand: Expand | None = None) -> Episode | None:
    """Build the episode of one attempt's events; None without a terminal status.

    `events` include the group's declaration. With `expand`, calls may be deltas, and stay so in the
    episode; it is used for the last answered call. Of several events with the same id and different
    contents, the one whose encoding sorts first counts.
    """
    distinct = _distinct(event for event in events if is_input(event))
    statuses = [event for event in distinct if isinstance(event, AgentStatus)]
    terminal = [event for event in statuses if is_terminal(event)]
    if not terminal:
        return None
    closing = min(terminal, key=lambda status: (status.event_time, status.event_id))
    rollout_id = str(closing.rollout_id)
    calls = sorted(
        (event for event in distinct if isinstance(event, LlmCall)),
        key=lambda call: (call.started_at, call.call_id),
    )
    declared = [status for status in statuses if status.kind is StatusKind.declared]
    own = [status for status in statuses if status.kind is not StatusKind.declared]
    inputs = tuple(event.event_id for event in distinct)
    revision = revision_of(inputs)
    return Episode(
        event_id=derive_id("episode", rollout_id, closing.attempt, revision),
        event_time=max(event.event_time for event in distinct),
        episode_id=episode_id(rollout_id, closing.attempt),
        revision=revision,
        group_id=closing.group_id,
        rollout_id=rollout_id,
        attempt=closing.attempt,
        mode=closing.mode,
        rule=RULE,
        inputs=inputs,
        outcome=OUTCOMES[closing.kind],
        failure=failure_of(closing, calls, expand),
        message=closing.message,
        will_retry=closing.will_retry,
        started_at=min([call.started_at for call in calls] + [status.event_time for status in own]),
        ended_at=closing.event_time,
        declaration=declared[0].declaration if declared else None,
        calls=tuple(calls),
        subject=next((event.subject for event in distinct if event.subject is not None), None),
        payload_key_id=next(
            (event.payload_key_id for event in distinct if event.payload_key_id is not None), None
        ),
    )


def supersede(previous: Episode | None, candidate: Episode) -> Episode | None:
    """Return the candidate to publish after `previous`; None unless it has strictly more inputs."""
    if previous is None:
        return candidate
    if not set(candidate.inputs) > set(previous.inputs):
        return None
    return msgspec.structs.replace(candidate, supersedes=previous.revision)


def missing_inputs(previous: Episode, held: Iterable[str]) -> frozenset[str]:
    """Ids of inputs of an earlier revision that are not in `held` and must be read again."""
    return frozenset(previous.inputs) - frozenset(held)


def _distinct(events: Iterable[Input]) -> list[Input]:
    """One event per id, sorted by id."""
    chosen: dict[str, Input] = {}
    for event in events:
        other = chosen.get(event.event_id)
        if other is None or (
            other != event and msgspec.json.encode(event) < msgspec.json.encode(other)
        ):
            chosen[event.event_id] = event
    return [chosen[event_id] for event_id in sorted(chosen)]
