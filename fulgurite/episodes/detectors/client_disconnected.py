"""The last call that ended was given up by the client, and nobody said what became of the attempt.

An agent that says it has finished closed the connection on purpose; one that was killed at its
deadline or crashed has a kind already, and the lost connection is its consequence. Only where the
closing status has no failure is it one.
"""

from __future__ import annotations

from fulgurite.enums import StatusKind
from fulgurite.episodes.detectors.evidence import Evidence
from fulgurite.episodes.detectors.unanswered import unanswered
from fulgurite.failures import FailureKind

_given_up = unanswered(FailureKind.client_disconnected)


def client_disconnected(seen: Evidence) -> bool:
    """Whether the attempt ended with a connection that was closed, and with nothing else."""
    said = seen.closing.kind is StatusKind.finished or seen.closing.failure not in (
        None,
        FailureKind.unknown,
    )
    return not said and _given_up(seen)
