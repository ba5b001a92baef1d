"""The attempt ended in a loop: the same answer or tool calls, upon the same results, `REPEATS`
times in a row.

One answer over and over, or two or three that take turns. A call that is repeated until its result
changes (a job that is polled) is no loop, nor is what the agent found its way out of. What is
compared are the messages of the last answered call, so an agent that forgets its own answers cannot
be caught.
"""

from __future__ import annotations

import json

from fulgurite.episodes.detectors.evidence import Evidence
from fulgurite.untrusted_json import Json, called_functions

REPEATS = 3
"""Asking twice is checking."""

PERIODS = (1, 2, 3)
"""Answers in one round of the loop."""

Turn = tuple[str, list[str]]
"""What the model said, and what it heard upon it."""


def loop_detected(seen: Evidence) -> bool:
    """Whether the last turns are rounds of a loop."""
    messages = _last([*seen.messages, *seen.answers[:1]], max(PERIODS) * REPEATS)
    *before, last = ["", *_last_said(messages, max(PERIODS) + 1)]
    if last not in before:
        # Most end with an answer that is like none of those just before it, and are not looked at
        # any further.
        return False
    turns = _turns(messages)
    return any(_rounds(turns[-period * REPEATS :], period) for period in PERIODS)


def _rounds(turns: list[Turn], period: int) -> bool:
    if len(turns) < period * REPEATS:
        return False
    pairs = list(zip(turns, turns[period:], strict=False))
    # Nothing has been heard upon the last answer.
    return all(a[0] == b[0] for a, b in pairs) and all(a[1] == b[1] for a, b in pairs[:-1])


def _last(messages: list[Json], turns: int) -> list[Json]:
    """The messages of the last so many turns: more are never compared, and a long conversation has
    many.
    """
    answers = [
        place
        for place, message in enumerate(messages)
        if message.get("role", "assistant") == "assistant"
    ]
    return messages[answers[-turns] :] if len(answers) > turns else messages


def _last_said(messages: list[Json], answers: int) -> list[str]:
    """What the last so many answers said."""
    return [
        _said(message)
        for message in [one for one in messages if one.get("role", "assistant") == "assistant"][
            -answers:
        ]
    ]


def _turns(messages: list[Json]) -> list[Turn]:
    turns: list[Turn] = []
    for message in messages:
        if message.get("role", "assistant") == "assistant":
            turns.append((_said(message), []))
        elif turns:
            turns[-1][1].append(_said(message))
    return turns


def _said(message: Json) -> str:
    """Without ids, which differ whenever the same is said again."""
    calls = [
        (function.get("name"), function.get("arguments")) for function in called_functions(message)
    ]
    return json.dumps([message.get("role"), message.get("content") or "", calls])
