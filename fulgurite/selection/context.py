"""Sorts requests into context cells, by what a gateway knows before the first answer.

A cell is the agent's role, the length of the conversation's opening, and whether tools are offered:
`planner/short+tools`. The opening is everything up to the first message of a user. Later turns
repeat it, so that all calls of a conversation are in one cell, whichever gateway they reach.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fulgurite.calls.transcript import body_of, messages_in, text_of
from fulgurite.events import LlmCall

_SIZES = ((1_000, "short"), (8_000, "medium"), (64_000, "long"))
"""Bytes below which an opening has a name. Tokens would not do: how many there are depends on the
variant.
"""
_LONGEST = "huge"
_ELSEWHERE = re.compile(r"fulgurite:claim:[0-9a-f]{64}:([0-9]{1,15})")
"""A text that is stored elsewhere, with its bytes (`fulgurite.calls.claim_checks`)."""


def cell_of(call: LlmCall) -> str:
    """The cell of a rollout's first call: as recorded, else by its request.

    Of a call whose whole request is stored elsewhere, only the role is known.
    """
    if call.cell is not None:
        return call.cell
    return (
        f"{call.agent}/"
        if call.request is None
        else context_cell(call.agent, body_of(call), call.api)
    )


def context_cell(agent: str, body: Mapping[str, Any], api: str) -> str:
    """The cell of a request body of this API."""
    size = 0
    for message in messages_in(dict(body), api):
        size += _size(text_of(message))
        if message.get("role") == "user":
            break
    name = next((name for bound, name in _SIZES if size < bound), _LONGEST)
    return f"{agent}/{name}{'+tools' if body.get('tools') else ''}"


def _size(text: str) -> int:
    stored = _ELSEWHERE.fullmatch(text)
    return int(stored[1]) if stored else len(text.encode("utf-8", "surrogatepass"))
