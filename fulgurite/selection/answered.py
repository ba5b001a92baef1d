"""The calls of an episode that an alias's route answered, and how they ended."""

from __future__ import annotations

from collections.abc import Sequence

from fulgurite.enums import CallOutcome
from fulgurite.events import Episode, LlmCall
from fulgurite.failures import FailureKind

_BY_SERVER = frozenset(
    {
        FailureKind.upstream_error,
        FailureKind.upstream_timeout,
        FailureKind.rate_limited,
        FailureKind.context_overflow,
        FailureKind.infrastructure,
    }
)
"""What a variant may do to a call. A request that every model server refuses is not among it."""


def answered_calls(episode: Episode, alias: str) -> list[LlmCall]:
    """The calls that this alias's route sent to a backend.

    An agent may have asked for another alias: one whose roles have aliases of their own.
    """
    return [
        call
        for call in episode.calls
        if (call.routed_alias or call.alias) == alias and call.backend
    ]


def variant_of(calls: Sequence[LlmCall]) -> str | None:
    """The variant that answered all of these calls; None if several did or the log does not say."""
    variants = {call.variant for call in calls}
    return variants.pop() if len(variants) == 1 else None


def is_failed_by_server(call: LlmCall) -> bool:
    """Whether the model server failed a call."""
    return call.outcome is not CallOutcome.success and call.failure in _BY_SERVER
