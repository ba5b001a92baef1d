"""Counts the tokens of one call by kind. What the call does not say is None, and never 0."""

from __future__ import annotations

from typing import Any

from fulgurite.enums import CallOutcome
from fulgurite.events import EventStruct, LlmCall
from fulgurite.ids import action_id
from fulgurite.tokens import token_count
from fulgurite.trajectories.building import successful_actions
from fulgurite.untrusted_json import mapping, parsed

_CACHED = (
    ("prompt_tokens_details", "cached_tokens"),
    ("input_tokens_details", "cached_tokens"),
    ("cache_read_input_tokens",),
)
"""Where chat completions, responses and messages say it in their usage."""


class CallTokens(EventStruct, frozen=True, kw_only=True):
    """The tokens of one call; None where they are not known."""

    prompt: int | None
    """Tokens of the prompt, cached or not."""
    cached: int | None
    """Those of them that the upstream read from its prefix cache."""
    sampled: int | None
    """Generated tokens, of all choices."""


def tokens_of(call: LlmCall) -> CallTokens:
    """Count a call's tokens, by its usage, else by its token ids. It may be a delta.

    A call that the gateway refused has none: no upstream saw it.
    """
    if call.outcome is CallOutcome.refused:
        return CallTokens(prompt=0, cached=0, sampled=0)
    sampled = call.completion_tokens
    if sampled is None and call.choices:
        counts = [token_count(c.token_ids) for c in call.choices if c.token_ids is not None]
        sampled = sum(counts) if len(counts) == len(call.choices) else None
    prompt = call.prompt_tokens
    if prompt is None and call.prompt_token_ids is not None:
        shared = call.parent.shared_tokens if call.parent else 0
        prompt = shared + token_count(call.prompt_token_ids)
    return CallTokens(prompt=prompt, cached=_cached(call, prompt), sampled=sampled)


def action_tokens(call: LlmCall) -> dict[str, int | None]:
    """The generated tokens of each action of a call."""
    actions = successful_actions(call)
    alone = call.completion_tokens if len(actions) == 1 else None
    counts = {
        action_id(call.call_id, choice.index): alone
        if choice.token_ids is None
        else token_count(choice.token_ids)
        for choice in call.choices
    }
    return {action: counts[action] for action in actions}


def _cached(call: LlmCall, prompt: int | None) -> int | None:
    try:
        usage: Any = mapping(parsed(call.response)).get("usage")
    except ValueError:
        return None
    for path in _CACHED:
        found = usage
        for name in path:
            found = mapping(found).get(name)
        if type(found) is int and 0 <= found <= (prompt or 0):
            return found
    return None
