"""What Agent Lightning's calculator agent is paid: 1 if it says `### ANSWER: N ###` with the right
number, after a call of the calculator, else 0.
"""

from __future__ import annotations

import re

from fulgurite import EpisodeView

_ANSWER = re.compile(r"###\s*ANSWER:\s*(-?\d+)(?:\.0+)?\s*###")


def score(episode: EpisodeView) -> dict[str, float]:
    """The rewards of an episode."""
    called = any(message.get("role") == "tool" for message in episode.messages)
    found = _ANSWER.fullmatch(episode.final_text().strip())
    right = found is not None and int(found[1]) == episode.task["reference"]["answer"]
    return {"reward": float(right and called), "answer": float(right), "called": float(called)}
