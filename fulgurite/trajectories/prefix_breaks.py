"""Guesses why a prompt does not extend the tokens before it.

It compares the messages and looks where the tokens begin to differ; no tokenizer is used. If the
messages are the earlier ones, our answer and something new, the agent changed nothing, and the
difference is between text and tokens. If the tokens differ before our last answer, the template
renders earlier turns differently. If they differ within it, a stop string was cut from the text,
the template stripped the reasoning, or the text was tokenised differently.
"""

from __future__ import annotations

import json

from fulgurite.calls.transcript import answer_of, messages_of
from fulgurite.enums import PrefixBreak
from fulgurite.events import Choice, LlmCall
from fulgurite.tokens import unpack_ids
from fulgurite.untrusted_json import Json, called_functions

_THOUGHTS = ("<think>", '"reasoning', '"thinking')
"""Marks of reasoning in an answer: in its text, in a field or item of its own, in a block."""


def classify(previous: LlmCall, choice: Choice, call: LlmCall) -> PrefixBreak:
    """Guess why `call` does not extend `previous` with its `choice`. All must have tokens."""
    if not continues(previous, choice, call):
        return PrefixBreak.rewritten
    prompt = previous.prompt_token_ids or b""
    parted = first_difference(prompt + (choice.token_ids or b""), call.prompt_token_ids or b"")
    if parted < len(prompt) // 4:
        return PrefixBreak.template
    if (
        choice.finish_reason == "stop"
        and choice.stop_reason is not None
        and not choice.stop_reason.lstrip("-").isdigit()
    ):
        return PrefixBreak.stop_string
    if any(thought in (choice.message or "") for thought in _THOUGHTS):
        return PrefixBreak.template
    return PrefixBreak.retokenised


def first_difference(left: bytes, right: bytes) -> int:
    """Number of leading tokens that two packed arrays share."""
    a, b = unpack_ids(left), unpack_ids(right)
    shared = min(len(a), len(b))
    different = (a[:shared] != b[:shared]).nonzero()[0]
    return int(different[0]) if len(different) else shared


def continues(previous: LlmCall, choice: Choice, call: LlmCall) -> bool:
    """Whether the messages of `call` begin with those of `previous` and its answer."""
    answer = answer_of(choice)
    before, after = messages_of(previous), messages_of(call)
    if answer is None or not before:
        return False
    expected = [_essence(message) for message in [*before, answer]]
    return [_essence(message) for message in after[: len(expected)]] == expected


def _essence(message: Json) -> tuple[str, str, str]:
    """A message's role, content and tool calls, without optional fields."""
    calls = [
        (function.get("name"), function.get("arguments")) for function in called_functions(message)
    ]
    return (
        str(message.get("role") or "assistant"),
        json.dumps(message.get("content") or ""),
        json.dumps(calls),
    )
