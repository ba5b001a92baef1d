"""The tokens of a call by kind; what a call does not say is unknown, never 0."""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec
import pytest

from fulgurite.cost.tokens import action_tokens, tokens_of
from fulgurite.enums import CallOutcome
from fulgurite.events import LlmCall, ParentRef
from fulgurite.ids import action_id
from tests.synthetic import make_call


def with_usage(call: LlmCall, usage: object, prompt: int | None = 10) -> LlmCall:
    return msgspec.structs.replace(
        call, prompt_tokens=prompt, completion_tokens=4, response=json.dumps({"usage": usage})
    )


@pytest.mark.parametrize(
    ("usage", "cached"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 6}}, 6),
        ({"prompt_tokens_details": {"cached_tokens": 0}}, 0),
        ({"input_tokens_details": {"cached_tokens": 7}}, 7),
        ({"cache_read_input_tokens": 3}, 3),
        ({"prompt_tokens_details": None}, None),
        ({"prompt_tokens_details": {"cached_tokens": 11}}, None),
        ({"prompt_tokens_details": {"cached_tokens": -1}}, None),
        ({"prompt_tokens_details": {"cached_tokens": True}}, None),
        ({"prompt_tokens_details": [6]}, None),
        ({}, None),
        (None, None),
        ("much", None),
    ],
)
def test_cached_tokens_are_those_of_the_usage(
    usage: Mapping[str, object] | None, cached: int | None
) -> None:
    found = tokens_of(with_usage(make_call(), usage))
    assert (found.prompt, found.cached, found.sampled) == (10, cached, 4)


@pytest.mark.parametrize("response", [None, "{not json", "[1]", '{"usage": '])
def test_a_response_without_a_usage_says_nothing(response: str | None) -> None:
    call = msgspec.structs.replace(make_call(), response=response)
    assert tokens_of(call).cached is None


def test_without_a_usage_token_ids_are_counted() -> None:
    call = make_call(prompt=[1, 2, 3], answers=[[7, 9], [8]])
    assert (tokens_of(call).prompt, tokens_of(call).sampled) == (3, 3)
    parent = ParentRef(call_id="p", partition=0, offset=0, shared_tokens=20, shared_messages=0)
    assert tokens_of(msgspec.structs.replace(call, parent=parent)).prompt == 23


def test_what_a_call_does_not_say_is_unknown() -> None:
    failed = make_call(prompt=None, answers=(), outcome=CallOutcome.upstream_error)
    half = make_call(prompt=None, answers=[[7, 9], None])
    for call in (failed, half):
        found = tokens_of(call)
        assert (found.prompt, found.cached, found.sampled) == (None, None, None)


def test_a_refused_call_reached_no_upstream() -> None:
    found = tokens_of(make_call(prompt=None, answers=(), outcome=CallOutcome.refused))
    assert (found.prompt, found.cached, found.sampled) == (0, 0, 0)


def test_actions_have_the_tokens_of_their_choices() -> None:
    two = make_call(answers=[[7, 9], None])
    assert action_tokens(msgspec.structs.replace(two, completion_tokens=9)) == {
        action_id(two.call_id, 0): 2,
        action_id(two.call_id, 1): None,
    }
    one = msgspec.structs.replace(make_call(answers=[None]), completion_tokens=9)
    assert action_tokens(one) == {action_id(one.call_id, 0): 9}
    assert action_tokens(make_call(outcome=CallOutcome.client_disconnected)) == {}
