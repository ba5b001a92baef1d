"""Classifies what went wrong in an attempt, from its calls and its closing status.

This is the registry; a new detector is one small file and one line here.

Detectors are pure functions of an attempt's events as a set; the first one of the list that matches
decides. The closing status's failure counts, unless it is only a symptom (none, `unknown`, an
exception, a time-out); then a detected cause replaces it. So an agent that crashed because the
model server failed is not trained as if the policy had failed.

Kinds without a detector (`agent_silent`, `agent_exception`, `cancelled`) are always reported;
docs/reference/failures.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fulgurite.episodes.detectors.client_disconnected import client_disconnected
from fulgurite.episodes.detectors.evidence import Evidence
from fulgurite.episodes.detectors.invalid_output import invalid_output
from fulgurite.episodes.detectors.loop_detected import loop_detected
from fulgurite.episodes.detectors.tool_error import tool_error
from fulgurite.episodes.detectors.tool_parse_error import tool_parse_error
from fulgurite.episodes.detectors.truncated import truncated
from fulgurite.episodes.detectors.unanswered import unanswered
from fulgurite.episodes.episode_deltas import Expand
from fulgurite.events import AgentStatus, LlmCall
from fulgurite.failures import FailureKind

DETECTORS: tuple[tuple[FailureKind, Callable[[Evidence], bool]], ...] = (
    (FailureKind.infrastructure, unanswered(FailureKind.infrastructure)),
    (FailureKind.upstream_error, unanswered(FailureKind.upstream_error)),
    (FailureKind.upstream_timeout, unanswered(FailureKind.upstream_timeout)),
    (FailureKind.rate_limited, unanswered(FailureKind.rate_limited)),
    (FailureKind.context_overflow, unanswered(FailureKind.context_overflow)),
    (FailureKind.agent_timeout, unanswered(FailureKind.agent_timeout)),
    (FailureKind.client_disconnected, client_disconnected),
    (FailureKind.tool_parse_error, tool_parse_error),
    (FailureKind.truncated, truncated),
    (FailureKind.invalid_output, invalid_output),
    (FailureKind.loop_detected, loop_detected),
    (FailureKind.tool_error, tool_error),
)
"""Failures that neither agent nor policy caused come first."""

SYMPTOMS = frozenset(
    {None, FailureKind.unknown, FailureKind.agent_exception, FailureKind.agent_timeout}
)
"""Failures of a closing status that do not name a cause."""


def failure_of(
    closing: AgentStatus, calls: Sequence[LlmCall], expand: Expand | None = None
) -> FailureKind | None:
    """The failure of an attempt that `closing` ended; None if none is reported or detected.

    `expand`: expands calls that are deltas.
    """
    if closing.failure not in SYMPTOMS:
        return closing.failure
    seen = Evidence(closing, calls, expand)
    return next((kind for kind, detect in DETECTORS if detect(seen)), closing.failure)
