"""What is served with a prompt version: what the version says is changed, and nothing else."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.calls.transcript import messages_in, system_prompt
from fulgurite.events import Demonstration, DemonstrationCall, PromptUpdate
from fulgurite.prompts.editing import served_body, served_call
from fulgurite.prompts.history import PromptHistory
from tests.fulgurite.prompts.prompt_updates import version
from tests.synthetic import make_call

SHOWN = (
    Demonstration(role="user", content="2+2?"),
    Demonstration(
        role="assistant",
        content="",
        tool_calls=(DemonstrationCall(id="d1", name="calc", arguments='{"a": 2}'),),
    ),
    Demonstration(role="tool", content="4", tool_call_id="d1"),
    Demonstration(role="assistant", content="It is 4."),
)
USER: dict[str, Any] = {"role": "user", "content": "hi"}
FUNCTION: dict[str, Any] = {"name": "calc", "description": "old", "parameters": {}}
CALL = {"id": "d1", "type": "function", "function": {"name": "calc", "arguments": '{"a": 2}'}}


def test_a_chat() -> None:
    body: dict[str, Any] = {
        "model": "policy",
        "messages": [{"role": "developer", "content": "Old."}, USER, {"role": "system", "content": "Late."}],
        "tools": [{"type": "function", "function": FUNCTION}, {"type": "function", "function": {"name": "other"}}],
        "temperature": 0.2,
    }  # fmt: skip
    prompt = version(
        1, system="New.", demonstrations=SHOWN, tools={"calc": "better", "absent": "x"}
    )
    assert served_body(body, "chat.completions", prompt) == {
        **body,
        "messages": [
            {"role": "developer", "content": "New."},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "4", "tool_call_id": "d1"},
            {"role": "assistant", "content": "It is 4."},
            *body["messages"][1:],
        ],
        "tools": [
            {"type": "function", "function": {**FUNCTION, "description": "better"}},
            body["tools"][1],
        ],
    }


def test_anthropics_messages() -> None:
    body: dict[str, Any] = {
        "system": [{"type": "text", "text": "Old."}],
        "messages": [USER],
        "tools": [FUNCTION],
    }
    spoken = msgspec.structs.replace(SHOWN[1], content="Let me see.")
    bad = msgspec.structs.replace(
        SHOWN[1], tool_calls=(DemonstrationCall(id="d2", name="calc", arguments="not JSON"),)
    )
    prompt = version(1, prefix="P", demonstrations=(spoken, bad, *SHOWN[2:]), tools={"calc": "new"})
    for api in ("messages", "messages.count_tokens"):
        assert served_body(body, api, prompt) == {
            "system": [{"type": "text", "text": "P\n\n"}, {"type": "text", "text": "Old."}],
            "messages": [
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": "Let me see."},
                        {"type": "tool_use", "id": "d1", "name": "calc", "input": {"a": 2}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "d2", "name": "calc", "input": {}}],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "d1", "content": "4"}],
                },
                {"role": "assistant", "content": "It is 4."},
                USER,
            ],
            "tools": [{**FUNCTION, "description": "new"}],
        }
    assert served_body({"messages": [USER]}, "messages", version(1, system="New.")) == {
        "messages": [USER],
        "system": "New.",
    }


def test_responses_with_instructions() -> None:
    body: dict[str, Any] = {
        "instructions": "Old.",
        "input": "hi",
        "tools": [{"type": "function", **FUNCTION}],
    }
    assert served_body(body, "responses", version(1, system="New.", tools={"calc": "new"})) == {
        "instructions": "New.",
        "input": "hi",
        "tools": [{"type": "function", **FUNCTION, "description": "new"}],
    }
    spoken = msgspec.structs.replace(SHOWN[1], content="Let me see.")
    shown = served_body(body, "responses", version(1, demonstrations=(SHOWN[0], spoken, SHOWN[1], *SHOWN[2:])))  # fmt: skip
    call = {"type": "function_call", "call_id": "d1", "name": "calc", "arguments": '{"a": 2}'}
    assert shown == {
        **body,
        "input": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "Let me see."},
            call,
            call,
            {"type": "function_call_output", "call_id": "d1", "output": "4"},
            {"role": "assistant", "content": "It is 4."},
            USER,
        ],
    }


def test_responses_whose_system_prompt_is_an_item() -> None:
    part = {"type": "input_text", "text": "Old."}
    body: dict[str, Any] = {"input": [{"role": "developer", "content": [part]}, USER]}
    assert served_body(body, "responses", version(1, prefix="P")) == {
        "input": [
            {"role": "developer", "content": [{"type": "input_text", "text": "P\n\n"}, part]},
            USER,
        ]
    }
    assert served_body(body, "responses", version(1, sections={"rules": "new"})) is None
    without = {"input": [USER]}
    assert served_body(without, "responses", version(1, prefix="P")) == {
        "input": [USER],
        "instructions": "P",
    }


@pytest.mark.parametrize(
    ("api", "body"),
    [
        ("completions", {"prompt": "hi"}),
        ("embeddings", {"input": "hi"}),
        ("chat.completions", {}),
        ("chat.completions", {"messages": []}),
        ("chat.completions", {"messages": "hi"}),
        ("chat.completions", {"messages": [{"role": "system", "content": 4}, USER]}),
        ("messages", {"messages": []}),
        ("messages", {"messages": {}}),
        ("messages", {"messages": [USER], "system": 4}),
        ("responses", {"prompt": {"id": "p"}}),
        ("responses", {"input": []}),
        ("responses", {"input": 4}),
        ("responses", {"input": "hi", "instructions": 4}),
    ],
)
def test_what_a_version_does_not_fit(api: str, body: dict[str, Any]) -> None:
    assert served_body(body, api, version(1, system="New.")) is None


def test_tools_of_any_form_pass() -> None:
    prompt = version(1, tools={"calc": "new"})
    odd: list[Any] = [None, {}, [3, {"name": ["calc"]}, {"type": "web_search"}]]
    for tools in odd:
        body: dict[str, Any] = {"messages": [3, USER], "tools": tools}
        assert served_body(body, "chat.completions", prompt) == body


TEXTS = st.text(max_size=12)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant"])},
        optional={"content": st.none() | TEXTS, "name": TEXTS},
    ),
    min_size=1,
    max_size=6,
)
PROMPTS = st.builds(
    version,
    st.just(1),
    system=st.none() | TEXTS,
    prefix=st.none() | TEXTS,
    demonstrations=st.sampled_from([(), SHOWN]),
    tools=st.sampled_from([{}, {"calc": "new"}]),
)
APIS = {"chat.completions": "messages", "messages": "messages", "responses": "input"}


@given(st.sampled_from(sorted(APIS)), MESSAGES, PROMPTS, st.dictionaries(TEXTS, st.integers()))
def test_nothing_else_changes(
    api: str, messages: list[Any], prompt: PromptUpdate, others: dict[str, int]
) -> None:
    body: dict[str, Any] = {**others, APIS[api]: messages, "tools": [FUNCTION]}
    before = copy.deepcopy(body)
    served = served_body(body, api, prompt)
    assert body == before, "the request itself stays as it is"
    assert served is not None
    assert served == served_body(body, api, prompt)
    edited = {APIS[api], "tools", "system", "instructions"}
    assert {k: v for k, v in served.items() if k not in edited} == {
        k: v for k, v in body.items() if k not in edited
    }
    said = [message for message in messages if message["role"] in ("user", "assistant")]
    kept = [one for one in served[APIS[api]] if one in said]
    assert len(kept) >= len(said), "what is said stays"
    assert served[APIS[api]][-1] == messages[-1] or len(said) < len(messages)
    if prompt.system and prompt.prefix is None:
        assert prompt.system in system_prompt(messages_in(served, api))


def test_a_recorded_call_is_shown_as_it_was_served() -> None:
    history = PromptHistory()
    history.apply(version(1, system="New."))
    call = msgspec.structs.replace(make_call(messages=[USER]), prompt_version="prompt@1")
    assert json.loads(served_call(call, history).request or "") == {
        "messages": [{"role": "system", "content": "New."}, USER]
    }
    for other in (
        make_call(messages=[USER]),
        msgspec.structs.replace(call, prompt_version="prompt@2"),
        msgspec.structs.replace(call, request=None),
        msgspec.structs.replace(call, alias="other"),
    ):
        assert served_call(other, history) is other
