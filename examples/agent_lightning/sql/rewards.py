"""What Agent Lightning's SQL agent is paid: 1 if its last query gives the reference's rows, else 0.

The agent writes queries into a fence; a text without one is taken for the query by its writer, and
left out by its rewriter, as the agent itself does it.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import re
import sys
from pathlib import Path

from fulgurite import EpisodeView

sys.path.append(str(Path(__file__).parents[2] / "text_to_sql"))

from database import is_right

_FENCE = re.compile(r".*```\w*\n(.*?)\n```.*", re.DOTALL)


def score(episode: EpisodeView) -> dict[str, float]:
    """The rewards of an episode."""
    query = ""
    for turn in episode.turns:
        found = _FENCE.match(turn.text)
        if turn.agent == "writer" or (turn.agent == "rewriter" and found):
            query = found[1].strip() if found else turn.text
    task = episode.task
    return {"reward": float(is_right(task["database"], query, task["reference"]["query"]))}
