"""The last answer was cut by its length limit; of several choices, all were."""

from __future__ import annotations

from fulgurite.episodes.detectors.evidence import Evidence


def truncated(seen: Evidence) -> bool:
    """Whether the attempt ended on an answer without an end."""
    return seen.answered is not None and all(
        choice.finish_reason == "length" for choice in seen.answered.choices
    )
