"""Anthropic's messages: whole, streamed, refused, broken off; tokens come from the plug-in beside
the answer.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fulgurite.failures import FailureKind
from fulgurite.tokens import unpack_ids, unpack_logprobs
from services.gateway.dialects.count_tokens import CountTokens
from services.gateway.dialects.messages import Messages
from services.gateway.errors import (
    BodyTooLarge,
    GatewayError,
    InvalidRequest,
    NotFound,
    Unauthorized,
    UpstreamBroken,
    UpstreamRejected,
)
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

DIALECT = Messages()
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
TOOL: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "calc", "input": {}}


def request(**fields: Any) -> Any:
    return ask(DIALECT, messages=MESSAGES, max_tokens=16, **fields)


def reply(**fields: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "id": "msg_up",
        "type": "message",
        "role": "assistant",
        "model": "served",
        "stop_reason": "end_turn",
    }
    base |= {
        "content": [{"type": "text", "text": "hello"}],
        "usage": {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 4},
    }
    return base | fields


def stream(
    stop: str = "end_turn", *blocks: tuple[dict[str, Any], list[dict[str, Any]]]
) -> list[bytes]:
    text: tuple[dict[str, Any], list[dict[str, Any]]] = (
        {"type": "text", "text": ""},
        [{"type": "text_delta", "text": "hel"}, {"type": "text_delta", "text": "lo"}],
    )
    start: dict[str, Any] = {
        "id": "msg_up",
        "type": "message",
        "role": "assistant",
        "model": "served",
        "content": [],
    }
    start["usage"] = {"input_tokens": 3, "output_tokens": 0}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    for index, (block, deltas) in enumerate(blocks or (text,)):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [
            {"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas
        ]
        events.append({"type": "content_block_stop", "index": index})
    events.append(
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop, "stop_sequence": None},
            "usage": {"output_tokens": 2},
        }
    )
    events.append({"type": "message_stop"})
    return [event(one) for one in events]


def test_the_body_passes_and_the_plug_in_is_asked() -> None:
    asked = request(
        system="s",
        tools=[{"name": "calc", "input_schema": {}}],
        metadata={"user_id": "u", "session_id": "s"},
    )
    assert sent(DIALECT, asked, VLLM) == {**asked.body, "model": "served"}
    assert DIALECT.upstream_headers(asked, VLLM)["x-fulgurite-tokens"] == "1"
    assert "x-fulgurite-tokens" not in DIALECT.upstream_headers(asked, OTHER)
    assert (asked.session, asked.user, asked.items) == ("s", "u", MESSAGES)


def test_without_messages_it_is_no_request() -> None:
    for dialect in (DIALECT, CountTokens()):
        with pytest.raises(InvalidRequest) as caught:
            ask(dialect, messages="hi")
        assert caught.value.param == "messages"


def test_a_whole_answer() -> None:
    capture = DIALECT.capture(request(), VLLM, CALL)
    field = [[part.decode() for part in packed([1, 2], [7, 8], [-0.5, -1.0])]]
    body = passed(capture, reply(fulgurite_tokens=field))
    assert body == reply() | {"id": f"msg_{CORE}", "model": "policy"}
    [taken] = capture.recorded_choices()
    assert unpack_ids(taken.token_ids or b"").tolist() == [7, 8]
    assert unpack_logprobs(taken.logprobs or b"").tolist() == [-0.5, -1.0]
    assert msgspec.json.decode(taken.message or "") == {
        "role": "assistant",
        "content": [{"type": "text", "text": "hello"}],
    }
    assert (taken.finish_reason, capture.prompt_tokens, capture.completion_tokens) == ("stop", 7, 2)
    assert unpack_ids(capture.prompt() or b"").tolist() == [1, 2]
    assert capture.answers() == [
        [{"role": "assistant", "content": [{"type": "text", "text": "hello"}]}]
    ]
    assert "content" not in (capture.response() or "")


def test_an_upstream_without_the_plug_in_gives_null_tokens() -> None:
    capture = DIALECT.capture(request(), OTHER, CALL)
    body = passed(capture, reply())
    assert (body["id"], body["model"]) == (f"msg_{CORE}", "served")
    assert (
        capture.recorded_choices()[0].token_ids,
        capture.recorded_choices()[0].logprobs,
        capture.prompt(),
    ) == (
        None,
        None,
        None,
    )


def test_a_stream_leaves_but_for_what_may_be_its_end() -> None:
    capture = DIALECT.capture(request(stream=True), VLLM, CALL)
    start, opened, first, second, *rest = stream()
    events = [
        start,
        opened,
        tokens([1, 2], [7], [-0.5]),
        first,
        tokens([], [8], [-1.0]),
        b": fulgurite-version policy@1.2",
        second,
        *rest,
    ]
    left, held = play(capture, events)
    assert left == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
    ]
    assert held == ["content_block_stop", "message_delta", "message_stop"]
    assert capture.finished()
    [taken] = capture.recorded_choices()
    assert unpack_ids(taken.token_ids or b"").tolist() == [7, 8]
    assert unpack_logprobs(taken.logprobs or b"").tolist() == [-0.5, -1.0]
    assert msgspec.json.decode(taken.message or "")["content"] == [
        {"type": "text", "text": "hello"}
    ]
    assert (capture.version_first, capture.version_last) == ("policy@1.2", "policy@1.2")
    assert (capture.prompt_tokens, capture.completion_tokens) == (3, 2)


def test_the_end_of_a_block_leaves_with_the_next() -> None:
    arguments: list[dict[str, Any]] = [
        {"type": "input_json_delta", "partial_json": '{"a":'},
        {"type": "input_json_delta", "partial_json": "1}"},
    ]
    thought: list[dict[str, Any]] = [
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "signature_delta", "signature": "s"},
    ]
    capture = DIALECT.capture(request(stream=True), VLLM, CALL)
    left, held = play(
        capture,
        stream("tool_use", ({"type": "thinking", "thinking": ""}, thought), (TOOL, arguments)),
    )
    assert left.count("content_block_stop") == held.count("content_block_stop") == 1
    assert held[0] == "content_block_stop"
    [taken] = capture.recorded_choices()
    assert taken.finish_reason == "tool_calls"
    assert msgspec.json.decode(taken.message or "")["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {**TOOL, "input": {"a": 1}},
    ]


def test_a_stream_that_breaks_off_keeps_what_came() -> None:
    capture = DIALECT.capture(request(stream=True), VLLM, CALL)
    assert capture.recorded_choices() == ()
    start, opened, first, *_ = stream()
    play(capture, [start, opened, tokens([1, 2], [7], [-0.5]), first])
    assert not capture.finished()
    [taken] = capture.recorded_choices()
    assert (taken.finish_reason, unpack_ids(taken.token_ids or b"").tolist()) == (None, [7])
    assert '"hel"' in (taken.message or "")


@pytest.mark.parametrize(
    "data",
    [
        {"type": "error", "error": {"type": "overloaded_error", "message": "too much"}},
        {"error": {"message": "too much"}},
    ],
)
def test_an_error_within_the_stream_is_noticed(data: dict[str, Any]) -> None:
    capture = DIALECT.capture(request(stream=True), VLLM, CALL)
    capture.parse_chunk(data)
    assert capture.error == "too much"


@pytest.mark.parametrize(
    "comments",
    [
        [tokens([1], [7], [-1.0]), tokens([1], [7], [-1.0], sequence=1)],
        [b": fulgurite-tokens 0 nonsense"],
        [b": fulgurite-tokens 0 !!! !!! !!!"],
        [b": fulgurite-tokens 0 AQ== AQ== AQ=="],
    ],
)
def test_tokens_that_cannot_be_matched_are_null_not_wrong(comments: list[bytes]) -> None:
    capture = DIALECT.capture(request(stream=True), VLLM, CALL)
    play(capture, [*comments, *stream()])
    [taken] = capture.recorded_choices()
    assert (taken.token_ids, taken.logprobs, capture.prompt()) == (None, None, None)


def test_ids_without_logprobs_are_kept() -> None:
    capture = DIALECT.capture(request(stream=True), VLLM, CALL)
    play(capture, [tokens([1], [7], []), *stream()])
    assert (
        capture.recorded_choices()[0].token_ids is None,
        capture.recorded_choices()[0].logprobs,
    ) == (False, None)


@pytest.mark.parametrize(
    ("stop", "arguments", "kind"),
    [
        ("max_tokens", '{"a":1}', FailureKind.truncated),
        ("tool_use", '{"a":', FailureKind.tool_parse_error),
        ("end_turn", "{}", None),
    ],
)
def test_what_is_wrong_with_an_answer_has_a_kind(
    stop: str, arguments: str, kind: FailureKind | None
) -> None:
    capture = DIALECT.capture(request(stream=True), VLLM, CALL)
    play(capture, stream(stop, (TOOL, [{"type": "input_json_delta", "partial_json": arguments}])))
    assert capture.failure() is kind


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({}, False),
        ({"tool_choice": {"type": "auto"}}, False),
        ({"tool_choice": {"type": "any"}}, True),
        ({"tool_choice": {"type": "tool", "name": "calc"}}, True),
        ({"output_config": {"format": {"type": "json_schema"}}}, True),
    ],
)
def test_sampling(fields: dict[str, Any], grammar: bool) -> None:
    sampling = DIALECT.sampling(request(temperature=0.5, **fields), DEFAULTS)
    assert (sampling.temperature, sampling.max_tokens, sampling.grammar) == (0.5, 16, grammar)


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (InvalidRequest("x"), "invalid_request_error"),
        (Unauthorized("x"), "authentication_error"),
        (NotFound("x"), "not_found_error"),
        (BodyTooLarge("x"), "request_too_large"),
        (UpstreamBroken("x"), "api_error"),
        (UpstreamRejected("v", 422, b"x"), "invalid_request_error"),
        (UpstreamRejected("v", 429, b"x"), "rate_limit_error"),
        (UpstreamRejected("v", 529, b"x"), "overloaded_error"),
    ],
)
def test_errors_have_anthropics_shape(problem: GatewayError, kind: str) -> None:
    body = msgspec.json.decode(DIALECT.error_body(problem))
    assert body == {"type": "error", "error": {"type": kind, "message": problem.message}}
    assert DIALECT.error_event(problem).startswith(b'event: error\ndata: {"type":"error"')


def test_counting_tokens_belongs_to_its_conversation_and_answers_nothing() -> None:
    dialect = CountTokens()
    asked = ask(dialect, messages=MESSAGES, stream=True)
    assert (asked.items, asked.stream) == (MESSAGES, False)
    assert sent(dialect, asked, VLLM)["model"] == "served"
    capture = dialect.capture(asked, VLLM, CALL)
    assert passed(capture, {"input_tokens": 5}) == {"input_tokens": 5}
    assert (capture.recorded_choices(), capture.answers(), capture.failure()) == ((), [], None)
    assert capture.response() == '{"input_tokens":5,"usage":null}'


def test_a_thread_is_refused_in_the_words_that_make_anthropics_client_send_the_whole_conversation() -> (
    None
):
    body = {
        "model": "policy",
        "max_tokens": 8,
        "messages": [{"role": "user", "content": "?"}],
        "thread": {"type": "create"},
    }
    with pytest.raises(InvalidRequest) as caught:
        Messages().parse(msgspec.json.encode(body))
    error = msgspec.json.decode(Messages().error_body(caught.value))["error"]
    assert error["type"] == "invalid_request_error"
    assert error["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }


@pytest.mark.parametrize("dialect", [Messages(), CountTokens()])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("container", "container_1"),
        ("container", {"id": "container_1", "skills": []}),
        ("mcp_servers", [{"type": "url", "url": "https://example.org", "name": "x"}]),
        ("context_management", {"edits": [{"type": "clear_tool_uses_20250919"}]}),
        (
            "context_management",
            {
                "edits": [
                    {
                        "type": "clear_thinking_20251015",
                        "keep": {"type": "thinking_turns", "value": 1},
                    }
                ]
            },
        ),
        ("context_management", {}),
        ("context_management", {"edits": [None]}),
    ],
)
def test_state_that_nobody_keeps_is_refused_by_name(
    dialect: Messages, field: str, value: Any
) -> None:
    with pytest.raises(
        InvalidRequest, match=f"`{field}` is not supported: .* Leave it out"
    ) as caught:
        ask(dialect, messages=MESSAGES, max_tokens=8, **{field: value})
    assert caught.value.param == field


def test_fields_that_ask_for_no_state_pass() -> None:
    keeps_all: dict[str, Any] = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    harmless: list[dict[str, Any]] = [
        {"container": None},
        {"mcp_servers": []},
        {"context_management": keeps_all},
        {"context_management": {"edits": []}},
    ]
    for fields in harmless:
        assert sent(DIALECT, request(**fields), VLLM).items() >= fields.items()
