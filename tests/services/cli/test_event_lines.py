"""Every event has a line of its own and JSON values without bytes, secrets or terminal codes."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.events import EVENT_TYPES, Choice, Event
from fulgurite.untrusted_json import encoded
from services.cli.event_lines import line_of
from services.common.runtime.event_json import event_json
from tests.contract.strategies import events
from tests.synthetic import make_call, make_declared

KEY = "fg-k1.abcdefgh.ijklmnop"


# To make up an event takes a hundred times as long as to show it.
@settings(max_examples=20)
@pytest.mark.parametrize("kind", EVENT_TYPES)
@given(data=st.data())
def test_every_event_has_a_line_and_json(kind: type[Event], data: st.DataObject) -> None:
    event = data.draw(events(kind))
    assert line_of(event)
    assert "event_id" in json.loads(encoded(event_json(event)))


def test_json_texts_are_values_and_tokens_are_counted_or_listed() -> None:
    call = make_call(messages=[{"role": "user", "content": "1+1"}])
    shown = event_json(call)
    assert shown["request"] == {"messages": [{"role": "user", "content": "1+1"}]}
    assert shown["prompt_token_ids"] == {"tokens": 3}
    assert shown["choices"][0]["logprobs"] == {"logprobs": 2}
    assert shown["choices"][0]["message"]["content"] == "answer 0"
    assert "error" not in shown
    full = event_json(call, tokens=True)
    assert full["prompt_token_ids"] == [1, 2, 3]
    assert full["choices"][0]["logprobs"] == [-0.5, -0.5]
    assert event_json(make_declared())["declaration"]["task"] == {"question": "1+1"}


def test_a_text_that_is_no_json_stays_and_odd_bytes_are_described() -> None:
    call = msgspec.structs.replace(make_call(), request="not json", prompt_token_ids=b"abc")
    shown = event_json(call)
    assert shown["request"] == "not json"
    assert shown["prompt_token_ids"] == {"bytes": 3, "begins": "616263"}


def test_secrets_that_an_agent_wrote_are_hidden() -> None:
    said = json.dumps({"role": "assistant", "content": f"my key is {KEY}", "api_key": "plain"})
    call = make_call(messages=[{"role": "user", "content": f"Bearer {KEY}"}])
    call = msgspec.structs.replace(call, choices=(Choice(index=0, message=said),))
    assert KEY not in line_of(call)
    written = encoded(event_json(call)).decode()
    assert KEY not in written
    assert '"api_key":"[hidden]"' in written
