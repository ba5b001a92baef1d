"""What an answer with or without Python is paid: 1 if it is right, less a little for each run.

The price teaches when not to call. Beside `reward` are recorded: whether the answer is right
(`answer`), runs per question (`calls`), whether Python was run where nothing was to be worked out
(`needless`), and, where there was, whether a program gave the answer (`program_right`). An answer
is right only as it stands: one that lists several numbers is wrong.
"""

from __future__ import annotations

import re

from fulgurite import EpisodeView

PRICE = 0.05
_ANSWER = re.compile(r"\s*answer:\s*(-?\d+)\s*\.?\s*", re.IGNORECASE)


def score(episode: EpisodeView) -> dict[str, float]:
    """The rewards of an episode."""
    reference = episode.task["reference"]
    results = [
        str(message.get("content")).strip()
        for message in episode.messages
        if message.get("role") == "tool"
    ]
    # A program that the model wrote last and that nobody ran has no result.
    calls = len(results)
    found = _ANSWER.fullmatch(episode.final_text())
    right = float(found is not None and found[1] == reference["answer"])
    rewards = {"reward": right - PRICE * calls, "answer": right, "calls": float(calls)}
    if reference["program"] is None:
        return {**rewards, "needless": float(calls > 0)}
    return {**rewards, "program_right": float(reference["answer"] in results)}
