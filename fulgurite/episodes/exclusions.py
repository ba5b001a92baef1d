"""Decides which calls of an episode are no part of its task: titles, summaries, completions of
what a person types.

Agents make such calls of their own accord, and the task's reward says nothing of them. Rules
describe them by what a call recorded of its request. A call is excluded if any rule matches it; a
rule matches if all its conditions hold. Other calls and rewards do not count, so a rule decides the
same live and in a replay. Calls that may not be trained (`fulgurite.calls.training_use`) are
excluded without a rule.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from fulgurite.calls.training_use import find_left_out_calls
from fulgurite.calls.transcript import (
    LONGEST_SEARCHED,
    body_of,
    is_system,
    messages_in,
    system_prompt,
    text_of,
)
from fulgurite.episodes.episode_deltas import unpack
from fulgurite.events import LlmCall


class ExclusionRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The conditions of a rule. One that is None always holds.

    Raises ValueError for a rule without a condition and for an invalid regular expression.
    """

    agent: str | None = None
    """The agent's role is this."""
    alias: str | None = None
    """The agent asked for this model name."""
    max_tokens: int | None = None
    """At most so many tokens may be generated. A call without a limit does not match."""
    tools: bool | None = None
    """Whether the request offers tools."""
    max_messages: int | None = None
    """The request has at most so many messages, system messages not counted."""
    system: str | None = None
    """A regular expression that is found in the system prompt."""
    last: str | None = None
    """A regular expression that is found in the text of the last message."""

    def __post_init__(self) -> None:
        if all(getattr(self, name) is None for name in self.__struct_fields__):
            raise ValueError(
                "a rule without a condition excludes every call: give it one of "
                f"{', '.join(self.__struct_fields__)}"
            )
        for pattern in (self.system, self.last):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error


def parse_exclusions(text: str) -> tuple[ExclusionRule, ...]:
    """Parse a JSON list of rules; an empty text has none. Raises ValueError."""
    return msgspec.json.decode(text, type=tuple[ExclusionRule, ...]) if text.strip() else ()


def find_excluded_calls(calls: Sequence[LlmCall], rules: Sequence[ExclusionRule]) -> frozenset[str]:
    """Ids of the calls of an attempt that a rule matches or that may not be trained; the calls may
    be packed. Raises BrokenDelta.
    """
    left_out = find_left_out_calls(calls)
    likely = {
        index: found
        for index, call in enumerate(calls)
        if (found := [rule for rule in rules if _matches_fields(rule, call)])
    }
    # Expanding the texts is expensive: it is done only where a rule may ask for them.
    texts = unpack(calls, proven=True) if likely else ()
    return left_out | frozenset(
        texts[index].call_id
        for index, found in likely.items()
        if any(_matches_body(rule, texts[index]) for rule in found)
    )


def _matches_fields(rule: ExclusionRule, call: LlmCall) -> bool:
    limit = call.sampling.max_tokens
    return (
        rule.agent in (None, call.agent)
        and rule.alias in (None, call.alias)
        and (rule.max_tokens is None or (limit is not None and limit <= rule.max_tokens))
    )


def _matches_body(rule: ExclusionRule, call: LlmCall) -> bool:
    """Whether the conditions on the request's body hold. For a body that cannot be read, or is
    stored outside Kafka, none does.
    """
    asked = (rule.tools, rule.max_messages, rule.system, rule.last)
    if all(condition is None for condition in asked):
        return True
    body = body_of(call)
    if not body:
        return False
    messages = messages_in(body, call.api)
    said = [message for message in messages if not is_system(message)]
    return (
        rule.tools in (None, bool(body.get("tools") or body.get("functions")))
        and (rule.max_messages is None or len(said) <= rule.max_messages)
        and _is_found(rule.system, system_prompt(messages))
        and _is_found(rule.last, text_of(said[-1]) if said else "")
    )


def _is_found(pattern: str | None, text: str) -> bool:
    return pattern is None or re.search(pattern, text[:LONGEST_SEARCHED]) is not None
