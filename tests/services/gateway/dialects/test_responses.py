"""OpenAI's responses: ids that work as `previous_response_id`, items that add up, markers that
wait.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fulgurite.failures import FailureKind
from fulgurite.tokens import unpack_ids, unpack_logprobs
from services.gateway.dialects.responses import Responses, following
from services.gateway.errors import InvalidRequest
from services.gateway.http.sse_relay import StreamRelay
from tests.services.gateway.dialects.samples import (
    CALL,
    CORE,
    DEFAULTS,
    OTHER,
    VLLM,
    ask,
    event,
    packed,
    passed,
    play,
    sent,
    tokens,
)

DIALECT = Responses()
OURS = f"resp_{CORE}"
MESSAGE: dict[str, Any] = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "hello", "annotations": []}],
}
FUNCTION: dict[str, Any] = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "c1",
    "name": "calc",
    "arguments": '{"a":1}',
    "status": "completed",
}


def response(*output: dict[str, Any], **fields: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "id": "resp_up",
        "object": "response",
        "model": "served",
        "status": "completed",
        "previous_response_id": None,
    }
    base |= {
        "output": list(output),
        "tools": [],
        "usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
    }
    return base | fields


def stream(*items: dict[str, Any], end: str = "completed") -> list[bytes]:
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response(status="in_progress", usage=None)},
        {"type": "response.in_progress", "response": response(status="in_progress", usage=None)},
    ]
    for index, item in enumerate(items):
        at = {"output_index": index, "item_id": item["id"]}
        if item["type"] == "message":
            events.append(
                {"type": "response.output_item.added", **at, "item": {**item, "content": []}}
            )
            events.append(
                {
                    "type": "response.content_part.added",
                    **at,
                    "part": {"type": "output_text", "text": ""},
                }
            )
            events += [
                {"type": "response.output_text.delta", **at, "delta": letter}
                for letter in item["content"][0]["text"]
            ]
            events.append(
                {"type": "response.output_text.done", **at, "text": item["content"][0]["text"]}
            )
            events.append({"type": "response.content_part.done", **at, "part": item["content"][0]})
        else:
            events.append(
                {"type": "response.output_item.added", **at, "item": {**item, "arguments": ""}}
            )
            events += [
                {"type": "response.function_call_arguments.delta", **at, "delta": letter}
                for letter in item["arguments"]
            ]
            events.append(
                {
                    "type": "response.function_call_arguments.done",
                    **at,
                    "arguments": item["arguments"],
                }
            )
        events.append({"type": "response.output_item.done", **at, "item": item})
    events.append({"type": f"response.{end}", "response": response(*items, status=end)})
    return [event(one) for one in events]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": 3}, "input"),
        ({"input": "a", "background": True}, "background"),
        ({"input": "a", "stream": 1}, "stream"),
    ],
)
def test_what_is_no_request_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask(DIALECT, **fields)
    assert caught.value.param == param


def test_vllm_is_given_our_id_and_its_plug_in_is_asked() -> None:
    asked = ask(DIALECT, input="hi", tools=[{"type": "function", "name": "calc"}])
    assert sent(DIALECT, asked, VLLM) == {**asked.body, "model": "served", "request_id": OURS}
    assert DIALECT.upstream_headers(asked, VLLM) == {"x-fulgurite-tokens": "1"}
    assert sent(DIALECT, asked, OTHER) == {**asked.body, "model": "gpt-5"}
    assert DIALECT.upstream_headers(asked, OTHER) == {}
    assert asked.items == [{"role": "user", "content": "hi"}]


def test_the_answer_that_a_request_builds_on_is_known() -> None:
    for named in (OURS, f"{OURS}.resp_68af", "resp_68af"):
        asked = ask(DIALECT, input="hi", previous_response_id=named)
        assert (asked.continues, asked.items) == (named, None)
    for nothing in (None, ""):
        asked = ask(DIALECT, input="hi", previous_response_id=nothing)
        assert (asked.continues, asked.items) == (None, [{"role": "user", "content": "hi"}])
    with pytest.raises(InvalidRequest, match="`previous_response_id` must be a string"):
        ask(DIALECT, input="hi", previous_response_id=["resp_1"])


@pytest.mark.parametrize("given", ["more", [{"role": "user", "content": "more"}]])
def test_what_a_request_builds_on_comes_first_and_no_state_is_named(given: Any) -> None:
    asked = ask(DIALECT, input=given, previous_response_id=OURS, temperature=1)
    before = [{"role": "user", "content": "hi"}, MESSAGE]
    for route in (VLLM, OTHER):
        body = sent(DIALECT, following(asked, before), route)
        assert body["input"] == [*before, {"role": "user", "content": "more"}]
        assert "previous_response_id" not in body
        assert body["temperature"] == 1
    assert (
        sent(DIALECT, following(ask(DIALECT, prompt={"id": "p"}), before), OTHER)["input"] == before
    )


def test_a_conversation_is_known_only_from_a_request_that_holds_all_of_it() -> None:
    assert ask(DIALECT, input=[MESSAGE]).items == [MESSAGE]
    assert ask(DIALECT, input="hi", previous_response_id="resp_68af").items is None
    assert ask(DIALECT, prompt={"id": "pmpt_1"}).items is None
    assert ask(DIALECT, input="hi", metadata={"session_id": "mine"}).session == "mine"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        (
            "conversation",
            "conv_1",
            "send the complete conversation in `input`, or `previous_response_id`",
        ),
        (
            "conversation",
            {"id": "conv_1"},
            "send the complete conversation in `input`, or `previous_response_id`",
        ),
        ("background", True, "Leave it out"),
        ("context_management", [{"type": "compaction", "compact_threshold": 1000}], "Leave it out"),
    ],
)
def test_state_that_nobody_keeps_is_refused_by_name(field: str, value: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=f"`{field}` is not supported") as caught:
        ask(DIALECT, input="hi", **{field: value})
    assert caught.value.param == field
    assert says in caught.value.message
    harmless: list[Any] = [None, False, []]
    for nothing in harmless:
        assert ask(DIALECT, input="hi", **{field: nothing}).items is not None


def test_a_stored_prompt_is_refused_where_it_would_be_ignored() -> None:
    asked = ask(DIALECT, input="hi", prompt={"id": "pmpt_1"})
    assert sent(DIALECT, asked, OTHER)["prompt"] == {"id": "pmpt_1"}
    with pytest.raises(InvalidRequest, match="`prompt` is not supported"):
        sent(DIALECT, asked, VLLM)


def test_a_whole_answer() -> None:
    capture = DIALECT.capture(ask(DIALECT, input="hi"), VLLM, CALL)
    field = [[part.decode() for part in packed([1, 2], [7, 8], [-0.5, -1.0])]]
    assert passed(capture, response(MESSAGE, fulgurite_tokens=field)) == response(MESSAGE) | {
        "id": OURS,
        "model": "policy",
    }
    [taken] = capture.recorded_choices()
    assert unpack_ids(taken.token_ids or b"").tolist() == [7, 8]
    assert unpack_logprobs(taken.logprobs or b"").tolist() == [-0.5, -1.0]
    assert msgspec.json.decode(taken.message or "") == {"role": "assistant", "output": [MESSAGE]}
    assert (taken.finish_reason, capture.prompt_tokens, capture.completion_tokens) == ("stop", 3, 2)
    assert capture.answers() == [[MESSAGE]]
    assert "output" not in msgspec.json.decode(capture.response() or "")


def test_another_upstreams_id_is_part_of_ours() -> None:
    before = f"{OURS}.resp_before"
    capture = DIALECT.capture(ask(DIALECT, input="hi", previous_response_id=before), OTHER, CALL)
    body = passed(capture, response(MESSAGE, previous_response_id="resp_before"))
    assert (body["id"], body["model"], body["previous_response_id"]) == (
        f"{OURS}.resp_up",
        "served",
        before,
    )


def test_a_stream_leaves_but_for_what_may_be_its_end() -> None:
    capture = DIALECT.capture(ask(DIALECT, input="hi", stream=True), VLLM, CALL)
    events = stream(MESSAGE, FUNCTION)
    left, held = play(
        capture,
        [
            *events[:2],
            tokens([1, 2], [7], [-0.5]),
            *events[2:6],
            tokens([], [8], [-1.0]),
            *events[6:],
        ],
    )
    assert left[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert [kind for kind in left if kind.endswith(".done")] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    assert held == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    [taken] = capture.recorded_choices()
    assert unpack_ids(taken.token_ids or b"").tolist() == [7, 8]
    assert msgspec.json.decode(taken.message or "")["output"] == [MESSAGE, FUNCTION]
    assert (taken.finish_reason, capture.finished()) == ("tool_calls", True)


def test_every_event_bears_our_id_and_the_alias() -> None:
    capture = DIALECT.capture(ask(DIALECT, input="hi", stream=True), VLLM, CALL)
    relay = StreamRelay(capture)
    left = b"".join(relay.relay_event(one) or b"" for one in stream(MESSAGE)) + b"".join(relay.held)
    assert b"resp_up" not in left
    assert b"served" not in left
    assert left.count(OURS.encode()) == 3


def test_a_stream_that_breaks_off_keeps_what_came() -> None:
    capture = DIALECT.capture(ask(DIALECT, input="hi", stream=True), VLLM, CALL)
    assert capture.recorded_choices() == ()
    events = stream(MESSAGE, FUNCTION)
    play(capture, [*events[:2], tokens([1, 2], [7], [-0.5]), *events[2:15]])
    assert not capture.finished()
    [taken] = capture.recorded_choices()
    output = msgspec.json.decode(taken.message or "")["output"]
    assert output[0] == MESSAGE
    assert (output[1]["name"], output[1]["arguments"]) == ("calc", '{"')
    assert (taken.finish_reason, unpack_ids(taken.token_ids or b"").tolist()) == (None, [7])
    capture = DIALECT.capture(ask(DIALECT, input="hi", stream=True), VLLM, CALL)
    play(capture, events[:6])
    assert msgspec.json.decode(capture.recorded_choices()[0].message or "")["output"][0][
        "content"
    ] == [{"type": "output_text", "text": "he"}]


@pytest.mark.parametrize(
    "data",
    [
        {"type": "error", "code": "x", "message": "died"},
        {
            "type": "response.failed",
            "response": response(status="failed", error={"code": "x", "message": "died"}),
        },
        {"error": {"message": "died"}},
    ],
)
def test_an_error_within_the_stream_is_noticed(data: dict[str, Any]) -> None:
    capture = DIALECT.capture(ask(DIALECT, input="hi", stream=True), VLLM, CALL)
    capture.parse_chunk(data)
    assert capture.error == "died"


@pytest.mark.parametrize(
    ("reply", "finish", "kind"),
    [
        (response(FUNCTION), "tool_calls", None),
        (response({**FUNCTION, "arguments": '{"a":'}), "tool_calls", FailureKind.tool_parse_error),
        (response(MESSAGE, status="incomplete"), "length", FailureKind.truncated),
        (
            response(MESSAGE, status="incomplete", incomplete_details={"reason": "content_filter"}),
            "content_filter",
            None,
        ),
        (response(status="failed"), "failed", FailureKind.upstream_error),
    ],
)
def test_how_an_answer_ended(reply: dict[str, Any], finish: str, kind: FailureKind | None) -> None:
    capture = DIALECT.capture(ask(DIALECT, input="hi"), VLLM, CALL)
    passed(capture, reply)
    assert (capture.recorded_choices()[0].finish_reason, capture.failure()) == (finish, kind)


def test_what_is_no_response_is_none() -> None:
    assert (
        DIALECT.capture(ask(DIALECT, input="hi"), VLLM, CALL).parse_reply({"choices": []}) is None
    )


def test_an_error_event_is_one_that_official_clients_raise() -> None:
    name, data = DIALECT.error_event(InvalidRequest("x", param="input")).strip().split(b"\n")
    body = msgspec.json.decode(data.removeprefix(b"data: "))
    assert name == b"event: error"
    assert (body["type"], body["message"], body["error"]["message"], body["param"]) == (
        "error",
        "x",
        "x",
        "input",
    )


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({}, False),
        ({"text": {"format": {"type": "text"}}}, False),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, True),
        ({"tool_choice": "required"}, True),
    ],
)
def test_sampling(fields: dict[str, Any], grammar: bool) -> None:
    sampling = DIALECT.sampling(
        ask(DIALECT, input="hi", temperature=0.5, max_output_tokens=7, **fields), DEFAULTS
    )
    assert (sampling.temperature, sampling.max_tokens, sampling.grammar) == (0.5, 7, grammar)
