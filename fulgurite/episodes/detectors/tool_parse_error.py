"""Detects that the last answer tried to call a tool and could not be parsed.

The gateway records this with the call. For a call with several choices it does not record which
one, so it does not count.
"""

from __future__ import annotations

from fulgurite.episodes.detectors.evidence import Evidence
from fulgurite.failures import FailureKind


def tool_parse_error(seen: Evidence) -> bool:
    """Whether the attempt ended with a malformed tool call."""
    call = seen.answered
    return (
        call is not None and len(call.choices) == 1 and call.failure is FailureKind.tool_parse_error
    )
