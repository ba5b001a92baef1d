"""The last call that ended failed, and the call itself says how: nothing the agent did afterwards
repaired it.

A failed call that the agent tried again with success is no failure of the episode.
"""

from __future__ import annotations

from collections.abc import Callable

from fulgurite.enums import CallOutcome
from fulgurite.episodes.detectors.evidence import Evidence
from fulgurite.failures import FailureKind


def unanswered(kind: FailureKind) -> Callable[[Evidence], bool]:
    """Whether the attempt ended with a call that failed so."""

    def detect(seen: Evidence) -> bool:
        return (
            seen.last is not None
            and seen.last.outcome is not CallOutcome.success
            and seen.last.failure is kind
        )

    return detect
