"""Conversations as demonstrations, and the sets that are searched."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from fulgurite.events import Demonstration, LlmCall
from fulgurite.prompts.examples import (
    EMPTY,
    Example,
    choose_pool,
    chosen,
    conversation_of,
    join_examples,
    slots_of,
    texts_of,
    without_shared_head,
)
from fulgurite.prompts.overlap import OverlapGuard
from tests.synthetic import make_call

SYSTEM = {"role": "system", "content": "s"}
USER = {"role": "user", "content": "2+2?"}
CALL = {"id": "c", "type": "function", "function": {"name": "calc", "arguments": '{"a": 1}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "4"}
ANSWER = {"role": "assistant", "content": "4"}
ANYBODY = OverlapGuard([])


def call(*messages: Any, reply: Any = ANSWER) -> LlmCall:
    return make_call(messages=messages, replies=[reply])


def said(role: str, content: str) -> Demonstration:
    return Demonstration(role=role, content=content)


def example(rollout: str, reward: float, *texts: str, task: str | None = None) -> Example:
    messages = tuple(
        said("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(texts)
    )
    return Example(rollout, task or rollout, reward, messages)


def test_a_conversation_is_all_but_the_system_prompt_with_the_answer() -> None:
    found = conversation_of(call(SYSTEM, USER, CALLS, RESULT))
    assert found is not None
    assert [(one.role, one.content) for one in found] == [
        ("user", "2+2?"),
        ("assistant", ""),
        ("tool", "4"),
        ("assistant", "4"),
    ]
    assert list(texts_of(found)) == ["2+2?", "", '{"a": 1}', "4", "4"]
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    assert conversation_of(call({"role": "user", "content": parts})) == (
        said("user", "2+2?"),
        said("assistant", "4"),
    )


def calling(**changed: Any) -> dict[str, Any]:
    return {**CALLS, "tool_calls": [{**CALL, **changed}]}


@pytest.mark.parametrize(
    "messages",
    [
        (SYSTEM,),
        (ANSWER,),
        (USER, RESULT),
        (USER, {"role": "tool", "content": "4"}),
        (USER, {"role": "critic", "content": "4"}),
        ({"role": "user", "content": 4},),
        ({"role": "user", "content": ""},),
        ({"role": "user", "content": [{"type": "image_url"}]},),
        (USER, calling(id=None), RESULT),
        (USER, calling(function={"name": "calc", "arguments": {}}), RESULT),
        (USER, calling(function={"name": "calc", "arguments": "{"}), RESULT),
        (USER, calling(function={"name": "calc", "arguments": "[]"}), RESULT),
    ],
)
def test_what_is_no_demonstration_gives_no_example(messages: tuple[Any, ...]) -> None:
    assert conversation_of(call(*messages)) is None


def test_a_call_without_a_last_answer_gives_no_example() -> None:
    assert conversation_of(call(USER, reply=CALLS)) is None
    assert conversation_of(msgspec.structs.replace(call(USER), choices=())) is None


def test_the_pool_has_the_best_of_each_task_the_shortest_first() -> None:
    given = [
        example("long", 1.0, "q1", "a long answer", task="one"),
        example("short", 1.0, "q1", "a", task="one"),
        example("better", 2.0, "q2", "a long answer", task="two"),
        example("bad", 0.0, "q3", "a", task="three"),
        example("third", 1.0, "q4", "an answer", task="four"),
    ]
    pool = choose_pool(given, ANYBODY, 8, 1.0)
    assert [one.rollout_id for one in pool] == ["better", "short", "third"]
    assert [one.rollout_id for one in choose_pool(given, ANYBODY, 2, 1.0)] == ["better", "short"]


def test_an_example_that_quotes_an_unseen_task_is_left_out() -> None:
    guard = OverlapGuard([{"question": "what is 3 plus 4"}])
    given = [example("a", 1.0, "what is 3 plus 4", "7"), example("b", 1.0, "what is 3 + 3", "6")]
    assert [one.rollout_id for one in choose_pool(given, guard, 8, 1.0)] == ["b"]


def test_what_all_conversations_begin_with_is_the_agents_own() -> None:
    given = [
        example("a", 1.0, "shown", "so", "1+1?", "2"),
        example("b", 1.0, "shown", "so", "1+2?", "3"),
    ]
    assert [one.messages for one in without_shared_head(given)] == [
        (said("user", "1+1?"), said("assistant", "2")),
        (said("user", "1+2?"), said("assistant", "3")),
    ]
    assert without_shared_head(given[:1]) == given[:1], "of one task nothing is known to be shared"
    same = [msgspec.structs.replace(given[0], task="other"), given[0]]
    assert [len(one.messages) for one in without_shared_head(same)] == [2, 2]


def test_slots_name_examples_and_back() -> None:
    pool = [example("a", 1.0, "q", "1"), example("b", 1.0, "r", "2")]
    assert chosen(pool, (1, EMPTY, 1, 0)) == (pool[1], pool[0])
    assert slots_of(("b",), pool, 2) == (1, EMPTY)
    assert slots_of(("gone",), pool, 2) is None
    assert slots_of(("a", "b"), pool, 1) is None


def test_ids_of_tool_calls_stay_apart() -> None:
    messages = conversation_of(call(USER, CALLS, RESULT)) or ()
    joined = join_examples([Example("a", "a", 1.0, messages), Example("b", "b", 1.0, messages)])
    assert [one.tool_call_id for one in joined if one.tool_call_id] == ["e1_c", "e2_c"]
    assert [one.id for message in joined for one in message.tool_calls] == ["e1_c", "e2_c"]
    assert json.loads(msgspec.json.encode(joined[0]))["content"] == "2+2?"
