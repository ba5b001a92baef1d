"""Three ways to pay a chain: its end, its right steps one by one, or the share of them.

`all_right` is recorded beside each, so that runs are compared by the same measure.
"""

from __future__ import annotations

import json
import re
from typing import Any

from fulgurite import EpisodeView

_EXPRESSION = re.compile(r"(\d+)\s*([-+*])\s*(\d+)")


def end(episode: EpisodeView) -> dict[str, Any]:
    """1 if every step was right."""
    return {"reward": all_right(episode), "all_right": all_right(episode)}


def steps(episode: EpisodeView) -> dict[str, Any]:
    """A fifth for each right step, paid to the call that took it."""
    paid = {call: right / len(_references(episode)) for call, right in right_steps(episode).items()}
    return {"reward": paid, "all_right": all_right(episode)}


def share(episode: EpisodeView) -> dict[str, Any]:
    """The share of right steps, paid to the episode."""
    right = sum(right_steps(episode).values())
    return {"reward": right / len(_references(episode)), "all_right": all_right(episode)}


def all_right(episode: EpisodeView) -> float:
    """Whether every step was right."""
    right = list(right_steps(episode).values())
    return float(len(right) == len(_references(episode)) and all(right))


def right_steps(episode: EpisodeView) -> dict[str, float]:
    """Whether each call wrote the expression of the reference, by call id.

    After a wrong step the values differ from the reference's, so no later step is right.
    """
    references = _references(episode)
    written = [_expression(call.choices[0].message) for call in episode.calls if call.choices]
    ids = [call.call_id for call in episode.calls if call.choices]
    return {
        call_id: float(text is not None and _normal(text) == _normal(reference))
        for call_id, text, reference in zip(ids, written, references, strict=False)
    }


def _references(episode: EpisodeView) -> list[str]:
    return episode.task["reference"]["expressions"]


def _expression(message: str | None) -> str | None:
    try:
        call = json.loads(message or "{}")["tool_calls"][0]
        return str(json.loads(call["function"]["arguments"])["expression"])
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _normal(expression: str) -> tuple[str, ...]:
    """Equal for expressions that mean the same, up to the order of a sum or product."""
    found = _EXPRESSION.fullmatch(expression.strip())
    if found is None:
        return (expression,)
    left, operator, right = found.groups()
    return (operator, *(sorted((left, right)) if operator != "-" else (left, right)))
