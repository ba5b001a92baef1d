"""Whatever an agent or a model may write where others expect messages, answers and tasks."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import strategies as st

from fulgurite.events import LlmCall
from tests.synthetic import make_call

_NAMES = (
    "role",
    "content",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "type",
    "text",
    "id",
    "input",
    "output",
    "is_error",
    "error",
)
_WORDS = (
    "assistant",
    "user",
    "tool",
    "text",
    "tool_use",
    "tool_result",
    "function_call",
    "function_call_output",
    "message",
    "json_schema",
)
_PLACES = ("messages", "input", "instructions", "system", "prompt", "response_format", "text")

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(_WORDS)
    | st.text(max_size=5)
)
anything = st.recursive(
    scalars | st.sampled_from(["\ud83d", '{"error": 1}', "[" * 2_000, "9" * 5_000]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=12,
)
"""JSON without any form."""

_almost = st.fixed_dictionaries(
    {"role": st.sampled_from(["assistant", "assistant", "user", "tool"]) | anything},
    optional={
        "content": anything,
        "tool_calls": anything | st.lists(anything, max_size=3),
        "type": anything,
    },
)
_listed = anything | st.lists(_almost | anything, max_size=8)
bodies = (
    st.dictionaries(st.sampled_from(_PLACES), _listed, max_size=3)
    | st.fixed_dictionaries({"messages": _listed})
    | anything
)
"""Requests that look right from afar."""

answers = (
    _almost
    | st.fixed_dictionaries({"output": _listed})
    | st.fixed_dictionaries({"text": anything})
    | anything
)

texts = (
    anything.map(json.dumps)
    | st.text(max_size=20).filter(lambda text: text.isprintable())
    | st.sampled_from(["[" * 5_000, '{"a":' * 900])
)


@st.composite
def calls(draw: st.DrawFn, turns: int = 4) -> list[LlmCall]:
    """Successful calls of one attempt; every other one does not go on from the tokens before it."""
    made: list[LlmCall] = []
    body: Any = draw(bodies)
    for turn in range(draw(st.integers(1, turns))):
        body = draw(bodies | st.just(body))
        call = make_call(turn=turn, at=1_000 + 10 * turn, prompt=(1, turn), answers=[(7, 9)])
        choice = msgspec.structs.replace(
            call.choices[0], message=draw(answers.map(json.dumps) | texts)
        )
        api = draw(
            st.sampled_from(
                ["chat.completions", "completions", "responses", "messages", "embeddings"]
            )
        )
        made.append(
            msgspec.structs.replace(
                call, request=draw(st.just(json.dumps(body)) | texts), choices=(choice,), api=api
            )
        )
    return made
