"""What is told from an attempt's events: a table per detector, who has the last word, and that
order plays no part.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import CallOutcome, StatusKind
from fulgurite.episodes.detectors import DETECTORS, SYMPTOMS, failure_of
from fulgurite.episodes.stitching import stitch
from fulgurite.events import AgentStatus, LlmCall
from fulgurite.failures import FailureKind
from fulgurite.untrusted_json import Json
from tests.synthetic import make_call, make_status

DONE = make_status()
LOST = make_status(kind=StatusKind.timed_out)


def told(*calls: LlmCall, by: AgentStatus = DONE) -> FailureKind | None:
    return failure_of(by, calls)


def failed(kind: FailureKind, turn: int = 0, at: int = 1_000) -> LlmCall:
    """A call that ended with a failure."""
    call = make_call(turn=turn, at=at, outcome=CallOutcome.refused, answers=[])
    return msgspec.structs.replace(call, failure=kind)


def say(text: str | None, **more: object) -> Json:
    return {"role": "assistant", "content": text, **more}


def use(name: str, arguments: str = "{}", call_id: str = "c") -> Json:
    return say(
        None,
        tool_calls=[
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        ],
    )


def result(content: object, call_id: str = "c") -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


@pytest.mark.parametrize(
    "kind",
    [
        "infrastructure",
        "upstream_error",
        "upstream_timeout",
        "rate_limited",
        "context_overflow",
        "agent_timeout",
    ],
)
def test_the_last_call_failed_and_nothing_repaired_it(kind: str) -> None:
    bad = failed(FailureKind(kind), turn=1, at=1_500)
    assert told(make_call(), bad) is FailureKind(kind)
    assert told(bad, make_call(turn=2, at=1_600)) is None
    assert told(failed(FailureKind.unknown)) is None
    assert told() is None


def test_a_crash_upon_a_failed_call_is_not_the_agent_s_fault() -> None:
    bad = failed(FailureKind.upstream_error)
    for kind in (FailureKind.agent_exception, FailureKind.agent_timeout, FailureKind.unknown):
        status = make_status(kind=StatusKind.failed, failure=kind)
        assert told(bad, by=status) is FailureKind.upstream_error
        assert told(make_call(), by=status) is kind


@pytest.mark.parametrize("kind", sorted(set(FailureKind) - SYMPTOMS))
def test_any_other_word_of_the_closing_status_counts(kind: FailureKind) -> None:
    assert (
        told(failed(FailureKind.rate_limited), by=make_status(kind=StatusKind.failed, failure=kind))
        is kind
    )


def test_a_closed_connection_counts_only_where_nobody_says_more() -> None:
    gone = failed(FailureKind.client_disconnected)
    assert told(gone, by=LOST) is FailureKind.client_disconnected
    assert (
        told(gone, by=make_status(kind=StatusKind.failed, failure=FailureKind.unknown))
        is FailureKind.client_disconnected
    )
    assert told(gone, by=DONE) is None
    killed = make_status(kind=StatusKind.failed, failure=FailureKind.agent_timeout)
    assert told(gone, by=killed) is FailureKind.agent_timeout


def test_a_malformed_tool_call_at_the_end() -> None:
    bad = msgspec.structs.replace(make_call(), failure=FailureKind.tool_parse_error)
    assert told(bad) is FailureKind.tool_parse_error
    assert told(bad, make_call(turn=1, at=1_100)) is None
    several = msgspec.structs.replace(
        make_call(answers=[(7,), (8,)]), failure=FailureKind.tool_parse_error
    )
    assert told(several) is None


def test_an_answer_without_an_end() -> None:
    assert told(make_call(finish="length")) is FailureKind.truncated
    assert told(make_call(finish="length"), make_call(turn=1, at=1_100)) is None
    cut, whole = make_call(finish="length", answers=[(7,), (8,)]), make_call()
    assert told(cut) is FailureKind.truncated
    assert told(msgspec.structs.replace(cut, choices=(cut.choices[0], whole.choices[0]))) is None


@pytest.mark.parametrize(
    ("results", "error"),
    [
        ([result('{"isError": true, "content": []}')], True),
        ([result('{"is_error": true}')], True),
        ([result('{"error": {"code": 404}}')], True),
        ([result('{"error": null, "value": 1}')], False),
        ([result("Error: no such file")], False),
        ([result('["error"]')], False),
        ([result([{"type": "image"}])], False),
        ([result(None)], False),
        ([result("[" * 100_000)], False),
        ([{**result("boom"), "is_error": True}], True),
        ([result('{"error": "x"}', "a"), result("7", "b")], False),
        ([], False),
    ],
)
def test_an_answer_upon_errors_of_tools(results: list[Json], *, error: bool) -> None:
    call = make_call(messages=[{"role": "user", "content": "go"}, use("f"), *results])
    assert told(call) is (FailureKind.tool_error if error else None)


def test_anthropic_s_tool_results_say_so_themselves() -> None:
    block = {"type": "tool_result", "tool_use_id": "c", "content": "boom", "is_error": True}
    call = msgspec.structs.replace(
        make_call(messages=[{"role": "user", "content": [block]}]), api="messages"
    )
    assert told(call) is FailureKind.tool_error


SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
        "v": {"const": 1},
    },
    "required": ["n"],
    "additionalProperties": False,
}


def asked(text: str | None, schema: object = SCHEMA, **more: object) -> LlmCall:
    call = make_call(replies=[say(text, **more)])
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return msgspec.structs.replace(
        call, request=json.dumps({"messages": [], "response_format": form})
    )


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"n": 1}', True),
        ('{"n": 1, "tags": ["a", "b"], "v": 1}', True),
        ("one", False),
        ("", False),
        ("[" * 100_000, False),
        ("[1]", False),
        ("{}", False),
        ('{"n": 1.5}', False),
        ('{"n": true}', False),
        ('{"n": 1, "tags": ["c"]}', False),
        ('{"n": 1, "v": 2}', False),
        ('{"n": 1, "more": 2}', False),
        (None, True),
    ],
)
def test_an_answer_without_the_asked_form(text: str | None, *, valid: bool) -> None:
    assert told(asked(text)) is (None if valid else FailureKind.invalid_output)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": ["string", "null"]}, "null"),
        ({"type": "boolean"}, "true"),
        ({"type": "thing"}, "true"),
        ({"enum": 3}, "3"),
        ({"required": 3}, "{}"),
        ({"items": 3}, "[3]"),
        ({"type": "object"}, '{"any": {"thing": []}}'),
    ],
)
def test_schemas_of_any_kind_are_read_without_complaint(schema: object, text: str) -> None:
    assert told(asked(text, schema)) is (
        FailureKind.invalid_output if schema == {"enum": 3} else None
    )


def test_what_asks_for_a_form_and_what_is_not_judged() -> None:
    plain = make_call(replies=[say("no JSON")])
    assert told(plain) is None
    anything = msgspec.structs.replace(
        plain, request='{"response_format": {"type": "json_object"}}'
    )
    assert told(anything) is FailureKind.invalid_output
    item = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "no JSON"}],
    }
    responses = make_call(replies=[{"output": [item]}])
    form = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    body = json.dumps({"text": form})
    assert (
        told(msgspec.structs.replace(responses, api="responses", request=body))
        is FailureKind.invalid_output
    )
    assert told(asked("no JSON", tool_calls=[{"function": {"name": "f"}}])) is None
    assert told(msgspec.structs.replace(plain, request="{")) is None
    assert told(msgspec.structs.replace(plain, request='{"response_format": {')) is None
    spelled = msgspec.structs.replace(
        plain, request=r'{"\u0072esponse_format": {"type": "json_object"}}'
    )
    assert told(spelled) is FailureKind.invalid_output
    assert told(msgspec.structs.replace(plain, request=None)) is None
    either = msgspec.structs.replace(
        asked("no JSON"), choices=(*asked("no JSON").choices, *asked('{"n": 1}').choices)
    )
    assert told(either) is None


def talk(*said: Json) -> LlmCall:
    """A call made with all but the last message, which is its answer."""
    return make_call(messages=[{"role": "user", "content": "go"}, *said[:-1]], replies=[said[-1]])


@pytest.mark.parametrize(
    ("said", "loops"),
    [
        (
            [
                use("f", call_id="1"),
                result("no", "1"),
                use("f", call_id="2"),
                result("no", "2"),
                use("f", call_id="3"),
            ],
            True,
        ),
        ([use("f"), result("no"), use("f")], False),
        ([use("poll"), result("1%"), use("poll"), result("2%"), use("poll")], False),
        (
            [
                use("f"),
                result("no"),
                use("f"),
                result("no"),
                use("f"),
                result("no"),
                say("I give up"),
            ],
            False,
        ),
        ([use("f", "1"), result("no"), use("f", "2"), result("no"), use("f", "3")], False),
        (
            [
                say("done"),
                {"role": "user", "content": "on"},
                say("done"),
                {"role": "user", "content": "on"},
                say("done"),
            ],
            True,
        ),
        (
            [use("a"), result("x"), use("b"), result("y")] * 2 + [use("a"), result("x"), use("b")],
            True,
        ),
        (
            [use("a"), result("x"), use("b"), result("y")] * 2 + [use("a"), result("x"), use("c")],
            False,
        ),
    ],
)
def test_loops(said: list[Json], *, loops: bool) -> None:
    assert told(talk(*said)) is (FailureKind.loop_detected if loops else None)


def test_what_nobody_in_the_attempt_caused_comes_first() -> None:
    assert (
        told(make_call(finish="length"), failed(FailureKind.upstream_timeout, turn=1, at=2_000))
        is FailureKind.upstream_timeout
    )
    assert len({kind for kind, _ in DETECTORS}) == len(DETECTORS)


CALLS: Sequence[LlmCall] = (
    make_call(turn=0, at=1_000),
    make_call(turn=1, at=1_100, finish="length"),
    failed(FailureKind.upstream_error, turn=2, at=1_100),
    failed(FailureKind.client_disconnected, turn=3, at=1_200),
    talk(use("f"), result("no"), use("f"), result("no"), use("f")),
    asked("no JSON"),
)


@given(st.lists(st.sampled_from(CALLS), max_size=8), st.sampled_from([DONE, LOST]), st.randoms())
def test_order_and_duplicates_play_no_part(
    calls: list[LlmCall], closing: AgentStatus, random: Random
) -> None:
    calls = [
        msgspec.structs.replace(call, event_id=f"{place}", call_id=f"{place}")
        for place, call in enumerate(calls)
    ]
    episode = stitch([*calls, closing])
    again = [*calls, *calls[:3], closing]
    random.shuffle(again)
    assert stitch(again) == episode
    assert episode is not None
    assert episode.failure is failure_of(closing, calls)
