"""A fallback for conversations on which nobody votes. It cannot know whether an answer is right."""

from __future__ import annotations

import re

from fulgurite import EpisodeView


def score(episode: EpisodeView) -> float:
    """1.0 if the last turn is `answer: N` where N is what the calculator said, else 0.0."""
    said = [str(turn.get("content")) for turn in episode.messages if turn.get("role") == "tool"]
    asked = [place for place, turn in enumerate(episode.messages) if turn.get("role") == "user"]
    answered = any(turn.get("role") == "tool" for turn in episode.messages[asked[-1] :])
    found = re.fullmatch(r"\s*answer:\s*(-?\d+)\s*\.?\s*", episode.final_text())
    return float(answered and found is not None and found[1] == said[-1])
