"""Detects that the last call failed; the call itself records how.

A failed call that the agent retried with success is not a failure of the episode.
"""

from __future__ import annotations

from collections.abc import Callable

from fulgurite.enums import CallOutcome
from fulgurite.episodes.detectors.evidence import Evidence
from fulgurite.failures import FailureKind


def unanswered(kind: FailureKind) -> Callable[[Evidence], bool]:
    """Make a detector of attempts whose last call failed with this kind."""

    def detect(seen: Evidence) -> bool:
        return (
            seen.last is not None
            and seen.last.outcome is not CallOutcome.success
            and seen.last.failure is kind
        )

    return detect
