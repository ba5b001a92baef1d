"""Detects that the client gave up the last call, and no other end of the attempt was reported.

An agent that reports success closed the connection on purpose. One that was killed at its deadline
or crashed already has a failure, and the lost connection is a consequence. So it counts only if the
closing status has no failure.
"""

from __future__ import annotations

from fulgurite.enums import StatusKind
from fulgurite.episodes.detectors.evidence import Evidence
from fulgurite.episodes.detectors.unanswered import unanswered
from fulgurite.failures import FailureKind

_given_up = unanswered(FailureKind.client_disconnected)


def client_disconnected(seen: Evidence) -> bool:
    """Whether the attempt ended with a closed connection and no reported end."""
    said = seen.closing.kind is StatusKind.finished or seen.closing.failure not in (
        None,
        FailureKind.unknown,
    )
    return not said and _given_up(seen)
