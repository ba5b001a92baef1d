"""What an answer from the knowledge base is paid.

`outcome` pays the right answer alone. `steps` pays half for it, and the other half for the searches
that lead there, each to the call that made it: what the credit rules `step` and `gigpo` are for.
With both the right answers (`answer`) and the steps that were taken (`first_step`, `all_steps`) are
recorded, so that their runs can be compared. An answer is right only as it stands: one that lists
several is wrong.
"""

from __future__ import annotations

import re
from typing import Any

from fulgurite import EpisodeView

_ANSWER = re.compile(r"\s*answer:\s*(.+?)\s*\.?\s*", re.IGNORECASE)
FOR_STEPS = 0.5


def outcome(episode: EpisodeView) -> dict[str, float]:
    """1 for the right answer, else 0."""
    return {"reward": answer_right(episode), **recorded(episode)}


def steps(episode: EpisodeView) -> dict[str, Any]:
    """Half for the answer, half for the searches, by call."""
    taken = steps_taken(episode)
    share = FOR_STEPS / len(_passages(episode))
    paid = {call: share for call in taken if call is not None}
    if episode.turns:
        last = episode.turns[-1].call_id
        paid[last] = paid.get(last, 0.0) + (1 - FOR_STEPS) * answer_right(episode)
    return {"reward": paid or 0.0, **recorded(episode)}


def recorded(episode: EpisodeView) -> dict[str, float]:
    """What is recorded beside the reward."""
    taken = steps_taken(episode)
    return {
        "answer": answer_right(episode),
        "first_step": float(taken[0] is not None),
        "all_steps": float(None not in taken),
    }


def answer_right(episode: EpisodeView) -> float:
    """1 if the last turn is `answer: X`, where X is the reference."""
    found = _ANSWER.fullmatch(episode.final_text())
    return float(
        found is not None and found[1].casefold() == episode.task["reference"]["answer"].casefold()
    )


def steps_taken(episode: EpisodeView) -> list[str | None]:
    """For each passage on the way to the answer: the call whose search found it; None if none did.

    A passage counts once the one before it was found, so that a guess is no step.
    """
    found = results_by_call(episode)
    taken: list[str | None] = []
    for passage in _passages(episode):
        place = next((n for n, (_, text) in enumerate(found) if text == passage), None)
        if place is None:
            break
        taken.append(found[place][0])
        found = found[place + 1 :]
    return taken + [None] * (len(_passages(episode)) - len(taken))


def results_by_call(episode: EpisodeView) -> list[tuple[str, str]]:
    """Call and result of each search."""
    calls = {
        tool_call.get("id"): turn.call_id
        for turn in episode.turns
        for tool_call in turn.message.get("tool_calls") or ()
    }
    return [
        (calls[message["tool_call_id"]], _text(message.get("content")))
        for message in episode.messages
        if message.get("role") == "tool" and message.get("tool_call_id") in calls
    ]


def _text(content: Any) -> str:
    """The Agents SDK may send a result as text or as parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


def _passages(episode: EpisodeView) -> list[str]:
    return episode.task["reference"]["passages"]
