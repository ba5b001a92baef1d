"""Detects that the last answer, in all its choices, was cut by its length limit."""

from __future__ import annotations

from fulgurite.episodes.detectors.evidence import Evidence


def truncated(seen: Evidence) -> bool:
    """Whether the attempt ended with an answer that was cut."""
    return seen.answered is not None and all(
        choice.finish_reason == "length" for choice in seen.answered.choices
    )
