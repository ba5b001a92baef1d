"""Detects that the attempt ended in a loop: the same answers after the same results, `REPEATS`
times.

A loop is one answer (or tool call) over and over, or two or three that alternate. Repeating a call
until its result changes (polling a job) is not a loop, and neither is a repetition that the agent
ended itself. The messages of the last answered call are compared, so an agent that drops its own
answers is not detected.
"""

from __future__ import annotations

import json

from fulgurite.episodes.detectors.evidence import Evidence
from fulgurite.untrusted_json import Json, called_functions

REPEATS = 3
"""Two equal rounds may be a check of the result."""

PERIODS = (1, 2, 3)
"""Possible numbers of answers in one round of the loop."""

Turn = tuple[str, list[str]]
"""An answer of the model, and the messages that followed it."""


def loop_detected(seen: Evidence) -> bool:
    """Whether the last turns are rounds of a loop."""
    messages = _last([*seen.messages, *seen.answers[:1]], max(PERIODS) * REPEATS)
    *before, last = ["", *_last_said(messages, max(PERIODS) + 1)]
    if last not in before:
        # Quick check: most attempts end with an answer that differs from those just before it.
        return False
    turns = _turns(messages)
    return any(_rounds(turns[-period * REPEATS :], period) for period in PERIODS)


def _rounds(turns: list[Turn], period: int) -> bool:
    if len(turns) < period * REPEATS:
        return False
    pairs = list(zip(turns, turns[period:], strict=False))
    # No message follows the last answer.
    return all(a[0] == b[0] for a, b in pairs) and all(a[1] == b[1] for a, b in pairs[:-1])


def _last(messages: list[Json], turns: int) -> list[Json]:
    """The messages of the last `turns` turns; more are never compared."""
    answers = [
        place
        for place, message in enumerate(messages)
        if message.get("role", "assistant") == "assistant"
    ]
    return messages[answers[-turns] :] if len(answers) > turns else messages


def _last_said(messages: list[Json], answers: int) -> list[str]:
    """The last `answers` answers as comparable texts."""
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
    """A message as comparable text, without ids, which differ in each repetition."""
    calls = [
        (function.get("name"), function.get("arguments")) for function in called_functions(message)
    ]
    return json.dumps([message.get("role"), message.get("content") or "", calls])
