"""Guesses why a prompt does not extend the tokens before it.

It looks at the messages and at the place where the tokens differ.

No tokenizer is asked. If the messages sent are those sent before, our answer and something new, the
agent changed nothing: the difference was made between text and tokens. Where the tokens part before
our last answer, the template renders earlier turns anew; within it, a stop string was cut from the
text, thinking was stripped by the template, or the text was tokenised differently.
"""

from __future__ import annotations

import json

from fulgurite.calls.transcript import answer_of, messages_of
from fulgurite.enums import PrefixBreak
from fulgurite.events import Choice, LlmCall
from fulgurite.tokens import unpack_ids
from fulgurite.untrusted_json import Json, called_functions

_THOUGHTS = ("<think>", '"reasoning', '"thinking')
"""How an answer tells of reasoning: in its text, in a field or an item of its own, in a block."""


def classify(previous: LlmCall, choice: Choice, call: LlmCall) -> PrefixBreak:
    """Why `call` does not extend `previous` with its `choice`; both have prompt tokens, the choice
    has tokens.
    """
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
    """Whether `call` was made with the messages of `previous`, its answer, and perhaps more."""
    answer = answer_of(choice)
    before, after = messages_of(previous), messages_of(call)
    if answer is None or not before:
        return False
    expected = [_essence(message) for message in [*before, answer]]
    return [_essence(message) for message in after[: len(expected)]] == expected


def _essence(message: Json) -> tuple[str, str, str]:
    """What a message says, whatever null and optional fields it carries."""
    calls = [
        (function.get("name"), function.get("arguments")) for function in called_functions(message)
    ]
    return (
        str(message.get("role") or "assistant"),
        json.dumps(message.get("content") or ""),
        json.dumps(calls),
    )
