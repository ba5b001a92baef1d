"""What Agent Lightning's RAG agent is paid: 1 if it says `<answer>X</answer>`, X as the reference
has it, else 0. Beside it is recorded whether it searched at all.
"""

from __future__ import annotations

import re

from fulgurite import EpisodeView

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def score(episode: EpisodeView) -> dict[str, float]:
    """The rewards of an episode."""
    found = _ANSWER.findall(episode.final_text())
    expected = episode.task["reference"]["answer"].casefold()
    right = len(found) == 1 and found[0].strip().casefold() == expected
    searched = any(message.get("role") == "tool" for message in episode.messages)
    return {"reward": float(right), "searched": float(searched)}
