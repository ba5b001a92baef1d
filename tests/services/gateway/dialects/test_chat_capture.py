"""One answer, two readers: the agent gets what it asked for, the log gets the engine's own tokens."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fulgurite.failures import FailureKind
from fulgurite.tokens import pack_ids, pack_logprobs, unpack_ids, unpack_logprobs
from services.gateway.dialects.chat_capture import ChatCapture, merge_delta
from services.gateway.dialects.choices import Wants
from services.gateway.http.sse_relay import StreamRelay
from tests.services.gateway.dialects.samples import packed, tokens

NOTHING = Wants(logprobs=False, token_ids=False, usage=False)
EVERYTHING = Wants(logprobs=True, token_ids=True, usage=True)


def logprobs(*values: float) -> dict[str, Any]:
    return {"content": [{"token": "t", "logprob": value, "top_logprobs": []} for value in values]}


def reply(**choice: Any) -> dict[str, Any]:
    base = {
        "index": 0,
        "message": {"role": "assistant", "content": "hi"},
        "finish_reason": "stop",
        "stop_reason": None,
    }
    base |= {"token_ids": [7, 8], "logprobs": logprobs(-0.5, -1.0)}
    return {
        "id": "up",
        "model": "served",
        "choices": [base | choice],
        "usage": {"prompt_tokens": 3},
        "prompt_token_ids": [1, 2, 3],
    }


def chunk(delta: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {
        "id": "up",
        "model": "served",
        "choices": [{"index": 0, "delta": delta, "finish_reason": None, "logprobs": None} | choice],
    }


def test_the_log_gets_the_tokens_and_the_agent_does_not() -> None:
    capture = ChatCapture("ours", "alias", NOTHING)
    passed = msgspec.json.decode(capture.parse_reply(reply()) or b"")
    choice = capture.choices[0].choice()
    assert unpack_ids(choice.token_ids or b"").tolist() == [7, 8]
    assert unpack_logprobs(choice.logprobs or b"").tolist() == [-0.5, -1.0]
    assert capture.prompt_token_ids == [1, 2, 3]
    assert (passed["id"], passed["model"]) == ("ours", "alias")
    assert "prompt_token_ids" not in passed
    assert "token_ids" not in passed["choices"][0]
    assert passed["choices"][0]["logprobs"] is None
    assert passed["usage"] == {"prompt_tokens": 3}


def test_the_agent_gets_what_it_asked_for() -> None:
    original = reply()
    passed = msgspec.json.decode(ChatCapture("ours", None, EVERYTHING).parse_reply(reply()) or b"")
    assert passed == original | {"id": "ours"}


FIELD = {"fulgurite_tokens": [[part.decode() for part in packed([1, 2, 3], [7, 8], [-0.5, -1.0])]]}
BARE = {"token_ids": None, "logprobs": None}


def test_packed_tokens_of_the_plug_in_are_the_answers() -> None:
    capture = ChatCapture("ours", "alias", NOTHING)
    body = capture.parse_reply(
        capture.decode_reply(
            msgspec.json.encode(reply(**BARE) | {"prompt_token_ids": None} | FIELD)
        )
    )
    general, plain = ChatCapture("ours", "alias", NOTHING), ChatCapture("ours", "alias", NOTHING)
    assert (
        body
        == general.parse_reply(reply(**BARE) | {"prompt_token_ids": None} | FIELD)
        == plain.parse_reply(reply())
    )
    assert capture.recorded_choices() == general.recorded_choices() == plain.recorded_choices()
    assert capture.prompt() == general.prompt() == plain.prompt() == pack_ids([1, 2, 3])


def test_packed_tokens_of_a_stream_come_as_comments() -> None:
    capture = ChatCapture("ours", "alias", NOTHING)
    relay = StreamRelay(capture)
    said = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "h"}),
        chunk({"content": "i"}),
        chunk({}, finish_reason="stop"),
    ]
    comments = [
        b"",
        tokens([1, 2, 3], [7], [-0.5]),
        tokens([], [8], [-1.0]),
        b": fulgurite-version policy@1.2",
    ]
    passed: list[bytes] = []
    for comment, event in zip(comments, said, strict=True):
        assert not comment or relay.relay_event(comment) is None
        out = relay.relay_event(
            b"data: "
            + msgspec.json.encode({"object": "chat.completion.chunk", "created": 1} | event)
        )
        passed += [out] if out is not None else []
    assert len(passed) == 3
    assert b"fulgurite" not in b"".join([*passed, *relay.held])
    [taken] = capture.recorded_choices()
    assert (taken.token_ids, taken.logprobs) == (pack_ids([7, 8]), pack_logprobs([-0.5, -1.0]))
    assert (capture.prompt(), capture.version_last) == (pack_ids([1, 2, 3]), "policy@1.2")


@pytest.mark.parametrize("said", [b"1 - AAAA AAAA", b"0 nonsense", b"0 - AQ== AQ=="])
def test_packed_tokens_that_cannot_be_matched_are_null_not_wrong(said: bytes) -> None:
    capture = ChatCapture("ours", "alias", NOTHING)
    capture.parse_comment(tokens([1], [7], [-0.5]))
    capture.parse_comment(b": fulgurite-tokens " + said)
    capture.parse_chunk(chunk({"content": "h"}))
    [taken] = capture.recorded_choices()
    assert (taken.token_ids, taken.logprobs, capture.prompt()) == (None, None, None)


def test_packed_tokens_of_two_choices_are_nobodys() -> None:
    capture = ChatCapture("ours", "alias", NOTHING)
    both = [reply(**BARE)["choices"][0], reply(index=1, **BARE)["choices"][0]]
    capture.parse_reply(reply() | {"choices": both} | FIELD)
    assert [choice.token_ids for choice in capture.recorded_choices()] == [None, None]


def test_the_response_is_kept_without_choices_and_tokens() -> None:
    capture = ChatCapture("ours", None, NOTHING)
    capture.parse_reply(reply())
    assert msgspec.json.decode(capture.response() or "") == {
        "id": "ours",
        "model": "served",
        "usage": {"prompt_tokens": 3},
    }


@pytest.mark.parametrize(
    "choice",
    [
        {"token_ids": None},
        {"token_ids": None, "logprobs": None},
        {"logprobs": {"content": [{"token": "t"}]}},
        {"logprobs": logprobs(-1)},
    ],
)
def test_tokens_that_do_not_pair_with_logprobs_are_null_not_wrong(choice: dict[str, Any]) -> None:
    capture = ChatCapture("ours", None, NOTHING)
    capture.parse_reply(reply(**choice))
    assert capture.choices[0].choice().logprobs is None


def test_an_upstream_without_tokens_is_recorded_all_the_same() -> None:
    capture = ChatCapture("ours", None, EVERYTHING)
    capture.parse_reply({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]})
    choice = capture.choices[0].choice()
    assert (choice.token_ids, choice.logprobs, choice.message) == (None, None, '{"content":"hi"}')


@pytest.mark.parametrize(
    ("finish", "message", "kind"),
    [
        ("stop", {"content": "x"}, None),
        ("length", {"content": "x"}, FailureKind.truncated),
        ("tool_calls", {"tool_calls": [{"function": {"arguments": '{"a": 1}'}}]}, None),
        (
            "tool_calls",
            {"tool_calls": [{"function": {"arguments": '{"a": '}}]},
            FailureKind.tool_parse_error,
        ),
        (
            "length",
            {"tool_calls": [{"function": {"arguments": '{"a": '}}]},
            FailureKind.tool_parse_error,
        ),
    ],
)
def test_what_is_wrong_with_an_answer_has_a_kind(
    finish: str, message: dict[str, Any], kind: FailureKind | None
) -> None:
    capture = ChatCapture("ours", None, NOTHING)
    capture.parse_reply(reply(finish_reason=finish, message=message))
    assert capture.failure() is kind


def test_a_stream_adds_up_to_the_message() -> None:
    capture = ChatCapture("ours", "alias", NOTHING)
    capture.parse_chunk(chunk({"role": "assistant", "content": ""}) | {"prompt_token_ids": [1]})
    capture.parse_chunk(chunk({"content": "a"}, token_ids=[7], logprobs=logprobs(-1)))
    assert not capture.finished()
    capture.parse_chunk(
        chunk(
            {"content": "b"},
            token_ids=[8, 9],
            logprobs=logprobs(-2, -3),
            finish_reason="stop",
            stop_reason=2,
        )
    )
    choice = capture.choices[0].choice()
    assert capture.finished()
    assert choice.message == '{"role":"assistant","content":"ab"}'
    assert unpack_ids(choice.token_ids or b"").tolist() == [7, 8, 9]
    assert unpack_logprobs(choice.logprobs or b"").tolist() == [-1, -2, -3]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "2")


def test_usage_is_kept_and_passed_only_if_asked() -> None:
    usage: dict[str, Any] = {"choices": [], "usage": {"completion_tokens": 4}}
    capture = ChatCapture("ours", None, NOTHING)
    assert capture.parse_chunk(dict(usage)) is None
    assert capture.usage == {"completion_tokens": 4}
    assert ChatCapture("ours", None, EVERYTHING).parse_chunk(dict(usage)) is not None


def test_a_chunk_that_holds_only_tokens_is_not_the_agents() -> None:
    assert ChatCapture("ours", None, NOTHING).parse_chunk(chunk({}, token_ids=[7])) is None
    assert ChatCapture("ours", None, EVERYTHING).parse_chunk(chunk({}, token_ids=[7])) is not None


def test_an_error_within_a_stream_is_noticed() -> None:
    capture = ChatCapture("ours", None, NOTHING)
    assert (
        capture.parse_chunk({"error": {"message": "engine died"}})
        == b'{"error":{"message":"engine died"}}'
    )
    assert capture.error == "engine died"
    assert ChatCapture("x", None, NOTHING).parse_chunk({"error": "plain"}) is not None


def test_tool_calls_are_joined_by_index() -> None:
    capture = ChatCapture("ours", None, NOTHING)
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": None},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "f", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
        {
            "tool_calls": [
                {"index": 0, "function": {"arguments": "1}"}},
                {"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}},
            ]
        },
    ]
    for delta in deltas:
        capture.parse_chunk(chunk(delta))
    assert capture.choices[0].message == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
            {"id": "c2", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


def test_unknown_delta_fields_are_kept() -> None:
    message: dict[str, Any] = {}
    for delta in (
        {"audio": {"data": "a"}, "notes": [1], "x": 1},
        {"audio": {"data": "b"}, "notes": [2], "x": 2, "reasoning": "r"},
    ):
        merge_delta(message, delta)
    assert message == {"audio": {"data": "ab"}, "notes": [1, 2], "x": 2, "reasoning": "r"}
