"""What three agents earn for a question about a database.

`reward` is 1 if the last query gives the rows of the reference, else 0. Beside it each role has a
reward of its own name, for the credit rule `per_role`: `writer`, if the first query was right;
`checker`, the share of its verdicts that were true; `rewriter`, if it was asked and the last query
is right. Rows are compared, not texts: their order counts only where the reference asks for one.
"""

from __future__ import annotations

from database import is_right

from fulgurite import EpisodeView


def score(episode: EpisodeView) -> dict[str, float]:
    """The rewards of an episode."""
    task = episode.task
    database, reference = task["database"], task["reference"]["query"]
    queries = [task["query"]] if task.get("query") else []
    verdicts: list[bool] = []
    asked: set[str] = set()
    for turn in episode.turns:
        asked.add(turn.agent)
        text = turn.text.strip()
        if turn.agent == "checker":
            said_wrong = text.lower().startswith("wrong")
            verdicts.append(said_wrong != is_right(database, queries[-1], reference))
        else:
            queries.append(text)
    last = float(bool(queries) and is_right(database, queries[-1], reference))
    rewards = {"reward": last}
    if "writer" in asked:
        rewards["writer"] = float(is_right(database, queries[0], reference))
    if verdicts:
        rewards["checker"] = sum(verdicts) / len(verdicts)
    if "rewriter" in asked:
        rewards["rewriter"] = last
    return rewards
