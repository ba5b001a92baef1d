"""Why a prompt does not extend the one before."""

from __future__ import annotations

import msgspec
import pytest

from fulgurite.calls.transcript import answer_of, messages_of
from fulgurite.enums import PrefixBreak
from fulgurite.events import LlmCall
from fulgurite.tokens import pack_ids
from fulgurite.trajectories.prefix_breaks import classify, first_difference
from tests.synthetic import make_call

QUESTION: dict[str, object] = {"role": "user", "content": "2+2?"}
ANSWER: dict[str, object] = {"role": "assistant", "content": "4", "refusal": None}
AGAIN: dict[str, object] = {"role": "user", "content": "sure?"}


def first(stop_reason: str | None = None, answer: dict[str, object] | None = None) -> LlmCall:
    return make_call(
        turn=0,
        prompt=(1, 2, 3),
        answers=[(7, 8, 9)],
        messages=[QUESTION],
        replies=[answer or ANSWER],
        stop_reason=stop_reason,
    )


def second(prompt: tuple[int, ...], messages: list[dict[str, object]] | None = None) -> LlmCall:
    sent: list[dict[str, object]] = [
        dict(QUESTION),
        {"role": "assistant", "content": "4"},
        dict(AGAIN),
    ]
    return make_call(turn=1, prompt=prompt, messages=sent if messages is None else messages)


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (first(), second((1, 2, 3, 7, 17, 9, 5)), PrefixBreak.retokenised),
        (first(stop_reason="END"), second((1, 2, 3, 7, 8, 5)), PrefixBreak.stop_string),
        (first(stop_reason="151645"), second((1, 2, 3, 7, 8, 5)), PrefixBreak.retokenised),
        (first(), second((1, 22, 3, 7, 8, 9, 5)), PrefixBreak.template),
        (first(), second((1, 2, 3, 7, 17), [dict(AGAIN)]), PrefixBreak.rewritten),
        (first(), second((1, 2, 3), []), PrefixBreak.rewritten),
    ],
)
def test_kinds(before: LlmCall, after: LlmCall, kind: PrefixBreak) -> None:
    assert classify(before, before.choices[0], after) is kind


def test_stripped_thinking_is_the_templates_doing() -> None:
    thought: dict[str, object] = {"role": "assistant", "content": "<think>hm</think>4"}
    sent: list[dict[str, object]] = [dict(QUESTION), thought, dict(AGAIN)]
    before = first(answer=thought)
    assert (
        classify(before, before.choices[0], second((1, 2, 3, 9, 5), sent)) is PrefixBreak.template
    )


def test_tool_calls_are_part_of_what_a_message_says() -> None:
    def asks(expression: str) -> dict[str, object]:
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "calc", "arguments": expression}}],
        }

    before = first(answer=asks("2+2"))
    same = second((1, 2, 3, 7, 17), [dict(QUESTION), asks("2+2")])
    other = second((1, 2, 3, 7, 17), [dict(QUESTION), asks("2+3")])
    assert classify(before, before.choices[0], same) is PrefixBreak.retokenised
    assert classify(before, before.choices[0], other) is PrefixBreak.rewritten


def test_unreadable_bodies_hold_nothing() -> None:
    call = first()
    assert messages_of(msgspec.structs.replace(call, request="{")) == []
    assert messages_of(msgspec.structs.replace(call, request="[]")) == []
    assert messages_of(msgspec.structs.replace(call, request='{"messages": 1}')) == []
    assert messages_of(msgspec.structs.replace(call, request=None)) == []
    broken = msgspec.structs.replace(call.choices[0], message="{")
    assert answer_of(broken) is None
    assert answer_of(msgspec.structs.replace(broken, message="1")) is None
    assert classify(call, broken, second((1, 2))) is PrefixBreak.rewritten


def test_first_difference() -> None:
    assert first_difference(pack_ids([1, 2, 3]), pack_ids([1, 2, 4])) == 2
    assert first_difference(pack_ids([1, 2]), pack_ids([1, 2, 4])) == 2
