"""The last answer tried to call a tool and could not be parsed, as the gateway recorded with the
call.

Of a call with several choices the record does not say which; it is no failure of the episode.
"""

from __future__ import annotations

from fulgurite.episodes.detectors.evidence import Evidence
from fulgurite.failures import FailureKind


def tool_parse_error(seen: Evidence) -> bool:
    """Whether the attempt ended on a malformed tool call."""
    call = seen.answered
    return (
        call is not None and len(call.choices) == 1 and call.failure is FailureKind.tool_parse_error
    )
