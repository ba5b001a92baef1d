"""Odd answers of upstreams: the agent gets them as they are or one error in words, and the log
holds what the agent saw.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fulgurite.enums import CallOutcome, Identity
from fulgurite.failures import FailureKind
from fulgurite.tokens import pack_ids
from services.gateway.recording.call import hide
from services.gateway.upstream.client import UpstreamReply
from tests.services.gateway.answering import JSON, KEY, SSE, Answer, Gateway, running

CHAT, COMPLETIONS, MESSAGES, RESPONSES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
)
ASKED: list[Any] = [{"role": "user", "content": "hi"}]
HEAD: dict[str, Any] = {"id": "u1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
DONE = b"data: [DONE]\n\n"


def sse(chunk: Any) -> bytes:
    """As most upstreams write it: ASCII, with escapes."""
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def chunk(delta: Any, finish: Any = None, **more: Any) -> bytes:
    return sse(HEAD | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish} | more]})


FIRST, LAST = chunk({"role": "assistant", "content": ""}), chunk({}, "stop")


def reply(**choice: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": "hi"},
        "finish_reason": "stop",
    }
    return {
        "id": "u1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [base | choice],
    }


async def streamed(
    gateway: Gateway,
    *pieces: bytes,
    alias: str = "odd",
    messages: list[Any] = ASKED,
    kind: str = SSE,
) -> Answer:
    return await gateway.answer(
        CHAT, pieces, headers={"content-type": kind}, model=alias, messages=messages, stream=True
    )


async def whole(gateway: Gateway, body: Any, alias: str = "odd", path: str = CHAT) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await gateway.answer(
        path, [raw], model=alias, messages=ASKED, input="hi", prompt="hi", max_tokens=9
    )


def text_of(answer: Answer) -> str:
    """What an agent puts together from a stream."""
    parts: list[Any] = [
        part for said in answer.events if said != "[DONE]" for part in said.get("choices", [])
    ]
    return "".join(part["delta"].get("content") or "" for part in parts)


def ended_well(answer: Answer) -> None:
    assert (answer.status, answer.call.outcome, answer.call.failure) == (
        200,
        CallOutcome.success,
        None,
    )


def failed(answer: Answer, words: str, status: int = 502) -> None:
    """One error to the agent, one event that says the same."""
    assert (answer.call.outcome, answer.call.failure) == (
        CallOutcome.upstream_error,
        FailureKind.upstream_error,
    )
    assert words in (answer.call.error or "")
    assert answer.status == status
    error = answer.events[-1] if status == 200 else json.loads(answer.body)
    assert words in json.dumps(error["error"])
    assert "[DONE]" not in answer.body.decode()


# --- How a stream ends
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ([DONE], None),
        (
            [
                sse(HEAD | {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}),
                DONE,
            ],
            None,
        ),
        ([LAST, b"data: [DONE]"], "stop"),
        ([LAST[:-1]], "stop"),
        ([LAST[:-2]], "stop"),
        ([LAST, b'data: {"error":null,"usage":{"prompt_tokens":3}}\n\n', DONE], "stop"),
        (
            [LAST, b"event: done\n", DONE, chunk({"content": "never said"}), b": and more\n\n"],
            "stop",
        ),
        ([LAST, b'data: {"choices": [{"index": 0, "del'], "stop"),
    ],
)
async def test_a_stream_that_is_complete_is_a_success(
    gateway: Gateway, end: list[bytes], reason: str | None
) -> None:
    answer = await streamed(
        gateway, FIRST, chunk({"content": "hel"}), chunk({"content": "lo"}), *end
    )
    ended_well(answer)
    assert (text_of(answer), answer.message) == ("hello", {"role": "assistant", "content": "hello"})
    assert answer.call.choices[0].finish_reason == reason
    assert (answer.events[-1] == "[DONE]") == (b"[DONE]" in b"".join(end))


@pytest.mark.parametrize("line_end", [b"\r", b"\r\n", b"\n"])
@pytest.mark.parametrize("size", [1, 3, 10_000])
async def test_lines_may_end_as_the_standard_has_it(
    gateway: Gateway, line_end: bytes, size: int
) -> None:
    text = b"".join(
        [b"\xef\xbb\xbf", FIRST, b": alive\n\n", chunk({"content": "hello"}), LAST, DONE]
    ).replace(b"\n", line_end)
    answer = await streamed(gateway, *(text[at : at + size] for at in range(0, len(text), size)))
    ended_well(answer)
    assert (text_of(answer), answer.message["content"], answer.events[-1]) == (
        "hello",
        "hello",
        "[DONE]",
    )


@pytest.mark.parametrize(
    "end",
    [
        [],
        [b'data: {"choices": [{"index": 0, "delta": {"content": "lo'],
        [b": fulgurite-tokens 0 - AA"],
    ],
)
async def test_a_stream_that_breaks_off_is_an_error(gateway: Gateway, end: list[bytes]) -> None:
    answer = await streamed(gateway, FIRST, chunk({"content": "hel"}), *end)
    failed(answer, "ended before its answer did", 200)
    assert answer.message["content"] == "hel"


async def test_a_stream_without_any_choice_is_an_error(gateway: Gateway) -> None:
    failed(
        await streamed(gateway, sse(HEAD | {"choices": []}), DONE),
        "ended before its answer did",
        200,
    )


# --- An upstream's own errors
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        chunk({"content": ""}, "error").replace(
            b'"model"', b'"error": {"message": "it died", "code": 502}, "model"'
        ),
        sse({"error": {"message": "it died"}}),
        sse({"error": "it died"}),
        b'event: error\ndata: {"message": "it died", "code": 1}\n\n',
        b"event: error\ndata: it died\n\n",
        b"event: error\r\ndata: it died\r\n",
    ],
)
async def test_an_error_in_a_stream_is_an_error_with_its_words(
    gateway: Gateway, event: bytes
) -> None:
    answer = await streamed(
        gateway, FIRST, chunk({"content": "he"}), event, chunk({"content": "after it"}), LAST, DONE
    )
    failed(answer, "it died", 200)
    assert (text_of(answer), answer.message["content"]) == ("he", "he")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, reply() | {"error": {"message": "it died", "code": 502}}),
        (CHAT, {"error": {"message": "it died"}}),
        (CHAT, {"error": "it died"}),
        (COMPLETIONS, {"error": {"message": "it died"}}),
        (MESSAGES, {"type": "error", "error": {"type": "api_error", "message": "it died"}}),
        (RESPONSES, {"error": {"message": "it died"}}),
    ],
)
async def test_a_whole_answer_that_is_an_error_keeps_its_words(
    gateway: Gateway, path: str, body: Any
) -> None:
    failed(await whole(gateway, body, path=path), "it died")


async def test_an_answer_whose_reason_is_an_error_is_no_silent_success(gateway: Gateway) -> None:
    answer = await whole(gateway, reply(finish_reason="error"))
    assert (answer.status, answer.call.failure) == (200, FailureKind.upstream_error)


EMPTY: list[Any] = [[], [None], [3], None, {}, "x", [{"message": None}], [{"index": 0}]]
NOT_OBJECTS: list[Any] = [[], 5, None, "x", {}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *((CHAT, reply() | {"choices": choices}) for choices in EMPTY),
        *((COMPLETIONS, {"choices": choices}) for choices in [*EMPTY, [{"text": 3}]]),
        *((MESSAGES, {"content": content}) for content in ([None], None, "x")),
        *((RESPONSES, {"output": output}) for output in ([None], None, "x")),
        *(
            (path, body)
            for path in (CHAT, COMPLETIONS, MESSAGES, RESPONSES)
            for body in NOT_OBJECTS
        ),
        ("/v1/embeddings", []),
    ],
)
async def test_a_whole_answer_that_says_nothing_is_an_error(
    gateway: Gateway, path: str, body: Any
) -> None:
    failed(await whole(gateway, body, path=path), f"has not the shape of {path}")


@pytest.mark.parametrize("alias", ["odd", "oddv"])
async def test_a_whole_answer_to_a_request_for_a_stream_is_refused_in_words_and_recorded(
    gateway: Gateway, alias: str
) -> None:
    for kind in (JSON, "application/json; charset=utf-8"):
        answer = await streamed(gateway, json.dumps(reply()).encode(), alias=alias, kind=kind)
        failed(answer, "asked for a stream and sent a complete answer")
        assert answer.message["content"] == "hi"
    failed(await streamed(gateway, b'{"error": {"message": "quota"}}', kind=JSON), "quota")
    failed(await streamed(gateway, b"<html><h1>Sign in</h1>", kind="text/html"), "Sign in")


async def test_a_stream_that_is_labelled_as_json_is_a_stream(gateway: Gateway) -> None:
    answer = await streamed(
        gateway, b"\xef\xbb\xbf", FIRST, chunk({"content": "hello"}), LAST, DONE, kind=JSON
    )
    ended_well(answer)
    assert (text_of(answer), answer.message["content"], answer.events[-1]) == (
        "hello",
        "hello",
        "[DONE]",
    )


# --- Characters
# ----------------------------------------------------------------------------------------------------------------------


def halves(*texts: str, **more: Any) -> list[bytes]:
    """Chunks as a proxy writes them that escapes each on its own."""
    return [chunk({"content": text}, **more) for text in texts]


async def test_halves_of_a_character_are_one_in_the_record_and_in_the_next_turn(
    gateway: Gateway,
) -> None:
    answer = await streamed(gateway, FIRST, *halves("a\ud83c", "\udf0db", "c"), LAST, DONE)
    ended_well(answer)
    assert answer.message["content"] == "a🌍bc"
    assert text_of(answer).encode("utf-16", "surrogatepass").decode("utf-16") == "a🌍bc"
    later = [
        *ASKED,
        {"role": "assistant", "content": "a🌍bc"},
        {"role": "user", "content": "go on"},
    ]
    following = (await streamed(gateway, FIRST, LAST, DONE, messages=later)).call
    assert (following.identity, following.rollout_id) == (Identity.inferred, answer.call.rollout_id)


async def test_tokens_of_halves_are_all_there_and_not_the_agents(gateway: Gateway) -> None:
    logprobs: dict[str, Any] = {
        "content": [{"token": "t", "logprob": -0.5, "bytes": None, "top_logprobs": []}]
    }
    texts = ["a", "\ud83c", "\udf0d", "b"]
    said = [
        chunk({"content": text}, token_ids=[20 + at], logprobs=logprobs)
        for at, text in enumerate(texts)
    ]
    opening = sse(
        HEAD
        | {
            "prompt_token_ids": [1, 2, 3],
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}],
        }
    )
    answer = await streamed(gateway, opening, *said, LAST, DONE, alias="oddv")
    ended_well(answer)
    assert answer.message["content"] == "a🌍b"
    assert answer.call.choices[0].token_ids == pack_ids([20, 21, 22, 23])
    assert answer.call.prompt_token_ids == pack_ids([1, 2, 3])
    for hidden in (b"token_ids", b'"logprob"', b'"u1"', b'"m"'):
        assert hidden not in answer.body
    assert gateway.unread() == 0


async def test_a_half_that_stays_alone_is_a_replacement_character(gateway: Gateway) -> None:
    for texts in (["a\ud83c"], ["\udf0da"], ["\ud83c", "a"], ["\ud83c\ud83c\udf0d"]):
        answer = await streamed(gateway, FIRST, *halves(*texts), LAST, DONE)
        ended_well(answer)
        assert answer.message["content"] == "".join(texts).encode("utf-16", "surrogatepass").decode(
            "utf-16", "replace"
        )
    answer = await whole(gateway, reply(message={"role": "assistant", "content": "a\ud83c"}))
    ended_well(answer)
    assert (
        answer.message["content"],
        json.loads(answer.body)["choices"][0]["message"]["content"],
    ) == ("a\ufffd", "a\ud83c")


async def test_halves_in_other_apis(gateway: Gateway) -> None:
    events = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": half}}
        for half in ("\ud83c", "\udf0d")
    ]
    answer = await message_stream(gateway, [{"type": "text", "text": ""}, *events])
    ended_well(answer)
    assert answer.message["content"] == [{"type": "text", "text": "🌍"}]
    parts = [
        sse({"choices": [{"index": 0, "text": half, "finish_reason": None}]})
        for half in ("\ud83c", "\udf0d")
    ]
    end = sse({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    answer = await gateway.answer(
        COMPLETIONS, [*parts, end, DONE], model="odd", prompt="hi", stream=True
    )
    ended_well(answer)
    assert answer.message == {"text": "🌍"}


async def test_bytes_that_are_no_utf8_are_replacement_characters_without_tokens(
    gateway: Gateway,
) -> None:
    body = (
        json.dumps(reply(message={"role": "assistant", "content": "cafe"}, token_ids=[7]))
        .encode()
        .replace(b"cafe", b"caf\xe9")
    )
    answer = await whole(gateway, body, alias="oddv")
    ended_well(answer)
    assert (answer.message["content"], answer.call.choices[0].token_ids) == ("caf\ufffd", None)
    assert "caf\ufffd" in answer.body.decode()
    said = chunk({"content": "cafe"}, token_ids=[7]).replace(b"cafe", b"caf\xe9")
    answer = await streamed(gateway, FIRST, said, LAST, DONE, alias="oddv")
    ended_well(answer)
    assert (text_of(answer), answer.message["content"], answer.call.choices[0].token_ids) == (
        "caf\ufffd",
        "caf\ufffd",
        None,
    )
    assert gateway.unread() == 2


@pytest.mark.parametrize(
    "odd",
    [
        b"data: whatever\n\n",
        b"data: [1]\n\n",
        b"data: {\xff\n\n",
        b"data: " + b"[" * 5000 + b"\n\n",
    ],
)
async def test_a_chunk_that_cannot_be_read_goes_on_and_leaves_no_tokens(
    gateway: Gateway, odd: bytes
) -> None:
    answer = await streamed(
        gateway, FIRST, chunk({"content": "a"}, token_ids=[7]), odd, LAST, DONE, alias="oddv"
    )
    ended_well(answer)
    assert odd in answer.body
    assert (answer.message["content"], answer.call.choices[0].token_ids, gateway.unread()) == (
        "a",
        None,
        1,
    )


# --- Tool calls
# ----------------------------------------------------------------------------------------------------------------------


def call(index: Any, name: str | None, function: str | None, arguments: str) -> dict[str, Any]:
    """A fragment; what is None is not there."""
    fragment: dict[str, Any] = {"function": {"arguments": arguments}}
    fragment |= {} if index is None else {"index": index}
    fragment |= {} if name is None else {"id": name, "type": "function"}
    fragment["function"] |= {} if function is None else {"name": function}
    return fragment


WEATHER, TIME = '{"city":"Ulm"}', '{"tz":"CET"}'
ONE: list[tuple[Any, ...]] = [("c1", "get_weather", WEATHER)]
BOTH: list[tuple[Any, ...]] = [*ONE, ("c2", "get_time", TIME)]


@pytest.mark.parametrize(
    ("deltas", "made"),
    [
        ([[call(0, "c1", "get_weather", WEATHER)], [call(0, "c2", "get_time", TIME)]], BOTH),
        ([[call(0, "c1", "get_weather", WEATHER), call(0, "c2", "get_time", TIME)]], BOTH),
        (
            [
                [call(0, "c1", "get_weather", "")],
                *([call(0, None, None, piece)] for piece in ('{"city":', '"Ulm"}')),
                [call(0, "c2", "get_time", "")],
                *([call(0, None, None, piece)] for piece in ('{"tz":', '"CET"}')),
            ],
            BOTH,
        ),
        (
            [
                [call(1, "c2", "get_time", '{"tz":')],
                [call(0, "c1", "get_weather", '{"city":')],
                [call(1, None, None, '"CET"}')],
                [call(0, None, None, '"Ulm"}')],
            ],
            BOTH,
        ),
        (
            [
                [call(0, "c1", "get_weather", WEATHER)],
                [call(2, "c2", "get_time", '{"tz":')],
                [call(2, None, None, '"CET"}')],
            ],
            BOTH,
        ),
        ([[call(1, "c1", "get_weather", '{"city":')], [call(1, None, None, '"Ulm"}')]], ONE),
        ([[call(None, "c1", "get_weather", '{"city":')], [call(None, None, None, '"Ulm"}')]], ONE),
        ([[call("0", "c1", "get_weather", '{"city":')], [call("0", None, None, '"Ulm"}')]], ONE),
        (
            [[call(0, "c1", "get_weather", '{"city":')], [call(0, "c1", "get_weather", '"Ulm"}')]],
            ONE,
        ),
        ([[call(0, "c1", "get_weather", '{"city":')], [call(0, "", "", '"Ulm"}')]], ONE),
        (
            [[call(None, None, "get_weather", WEATHER), call(None, None, "get_time", TIME)]],
            [(None, *ONE[0][1:]), (None, *BOTH[1][1:])],
        ),
        (
            [[call(0, None, "get_time", TIME)], [call(0, None, "get_time", TIME)]],
            [(None, "get_time", TIME)] * 2,
        ),
    ],
)
async def test_tool_calls_are_told_apart_by_id_then_index(
    gateway: Gateway, deltas: list[Any], made: list[Any]
) -> None:
    said = [chunk({"tool_calls": fragments}) for fragments in deltas]
    answer = await streamed(gateway, FIRST, *said, chunk({}, "tool_calls"), DONE)
    ended_well(answer)
    calls = answer.message["tool_calls"]
    assert [
        (one.get("id"), one["function"]["name"], one["function"]["arguments"]) for one in calls
    ] == made
    later = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "5"},
    ]
    following = (await streamed(gateway, FIRST, LAST, DONE, messages=later)).call
    assert (following.identity, following.rollout_id) == (Identity.inferred, answer.call.rollout_id)


async def test_what_else_a_tool_call_has_is_kept(gateway: Gateway) -> None:
    first: dict[str, Any] = {
        "index": 0,
        "id": "c1",
        "type": "custom",
        "custom": {"name": "sh", "input": "l"},
        "extra": {"signature": "s"},
    }
    said = [
        chunk({"tool_calls": [fragment]})
        for fragment in (first, {"index": 0, "custom": {"input": "s"}})
    ]
    answer = await streamed(gateway, FIRST, *said, chunk({}, "tool_calls"), DONE)
    expected = {
        "id": "c1",
        "type": "custom",
        "custom": {"name": "sh", "input": "ls"},
        "extra": {"signature": "s"},
    }
    assert answer.message["tool_calls"] == [expected]
    older = [{"name": "f", "arguments": '{"a"'}, {"name": "f", "arguments": ": 1}"}]
    answer = await streamed(
        gateway,
        FIRST,
        *(chunk({"function_call": piece}) for piece in older),
        chunk({}, "function_call"),
        DONE,
    )
    assert answer.message["function_call"] == {"name": "f", "arguments": '{"a": 1}'}


async def message_stream(
    gateway: Gateway,
    parts: list[dict[str, Any]],
    end: str | None = "end_turn",
    *,
    stop: bool = True,
) -> Answer:
    """A stream of Anthropic's: blocks begin with what has no event's type of its own."""
    message: Any = {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "usage": {"input_tokens": 3},
    }
    events: list[dict[str, Any]] = [{"type": "message_start", "message": message}]
    for part in parts:
        own = str(part["type"]).startswith("content_block")
        events.append(
            part if own else {"type": "content_block_start", "index": 0, "content_block": part}
        )
    if end is not None:
        events.append(
            {"type": "message_delta", "delta": {"stop_reason": end}, "usage": {"output_tokens": 2}}
        )
    events += [{"type": "message_stop"}] if stop else []
    pieces = [f"event: {event['type']}\n".encode() + sse(event) for event in events]
    return await gateway.answer(
        MESSAGES, pieces, model="odd", messages=ASKED, max_tokens=9, stream=True
    )


def delta(index: Any, piece: str) -> dict[str, Any]:
    return {
        "type": "content_block_delta",
        "index": index,
        "delta": {"type": "input_json_delta", "partial_json": piece},
    }


async def test_two_content_blocks_of_one_index_are_two(gateway: Gateway) -> None:
    blocks: list[dict[str, Any]] = [
        {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {}},
        delta(0, WEATHER),
        {"type": "content_block_stop", "index": 0},
        {"type": "tool_use", "id": "c2", "name": "get_time", "input": {}},
        delta(0, TIME),
        {"type": "content_block_stop", "index": 0},
    ]
    answer = await message_stream(gateway, blocks, "tool_use")
    ended_well(answer)
    assert [(block["id"], json.dumps(block["input"])) for block in answer.message["content"]] == [
        ("c1", '{"city": "Ulm"}'),
        ("c2", '{"tz": "CET"}'),
    ]


async def test_a_tool_without_arguments_is_called_with_none(gateway: Gateway) -> None:
    answer = await message_stream(
        gateway,
        [{"type": "tool_use", "id": "c1", "name": "now", "input": {}}, delta(0, "")],
        "tool_use",
    )
    ended_well(answer)
    assert answer.message["content"][0]["input"] == {}


async def test_a_message_that_does_not_say_why_it_ends_is_complete(gateway: Gateway) -> None:
    answer = await message_stream(gateway, [{"type": "text", "text": "hello"}], end=None)
    ended_well(answer)
    assert (answer.message["content"], answer.call.choices[0].finish_reason) == (
        [{"type": "text", "text": "hello"}],
        None,
    )
    failed(
        await message_stream(gateway, [{"type": "text", "text": "hello"}], end=None, stop=False),
        "ended before its answer did",
        200,
    )


def item(name: str, text: str) -> dict[str, Any]:
    return {
        "id": name,
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text}],
    }


@pytest.mark.parametrize("named", [True, False])
async def test_items_of_one_index_are_what_came_where_the_end_does_not_repeat_them(
    gateway: Gateway, named: bool
) -> None:
    events: list[dict[str, Any]] = [
        {
            "type": "response.created",
            "response": {"id": "r1", "status": "in_progress", "output": []},
        }
    ]
    for name in ("i1", "i2"):
        whole_item = item(name, f"text of {name}")
        if not named:
            del whole_item["id"]
        events += [
            {"type": f"response.output_item.{what}", "output_index": 0, "item": whole_item}
            for what in ("added", "done")
        ]
    events.append(
        {
            "type": "response.completed",
            "response": {"id": "r1", "status": "completed", "output": []},
        }
    )
    pieces = [f"event: {event['type']}\n".encode() + sse(event) for event in events]
    answer = await gateway.answer(RESPONSES, pieces, model="odd", input="hi", stream=True)
    ended_well(answer)
    assert [one["content"][0]["text"] for one in answer.message["output"]] == [
        "text of i1",
        "text of i2",
    ]
    assert answer.call.choices[0].finish_reason == "stop"


# --- What does not fit the log
# -------------------------------------------------------------------------------------------------------

DEEP = b"[" * 3000 + b"]" * 3000
ODD_INDICES: list[Any] = [[], {}, 2**40, -1, "0", True]
ODD_CHOICES: list[dict[str, Any]] = [
    *(
        {"token_ids": ids}
        for ids in ([2**40], ["a"], [None], [1.5], [[1]], [-5], [True], [2**31], [10**30])
    ),
    *({"index": index} for index in ODD_INDICES),
    {"logprobs": {"content": [{"logprob": 1e300}]}},
    {"logprobs": {"content": [{"logprob": "x"}]}},
    {"logprobs": {"content": [{"logprob": 10**400}]}},
    {"logprobs": {"content": [{"logprob": float("nan")}]}},
    {"stop_reason": {"a": "\ud83c"}},
    {"finish_reason": "\ud83c"},
]


@pytest.mark.parametrize("odd", ODD_CHOICES)
async def test_a_choice_with_odd_values_is_recorded_without_tokens_that_are_none(
    gateway: Gateway, odd: dict[str, Any]
) -> None:
    good: dict[str, Any] = {"token_ids": [7], "logprobs": {"content": [{"logprob": -0.5}]}}
    answer = await whole(gateway, reply(**(good | odd)), alias="oddv")
    ended_well(answer)
    assert answer.message["content"] == "hi"
    tokens = answer.call.choices[0]
    assert (tokens.token_ids, tokens.logprobs) == (None, None) or set(odd) <= {
        "stop_reason",
        "finish_reason",
        "logprobs",
    }
    assert "logprobs" not in odd or tokens.logprobs is None
    stream = await streamed(
        gateway, FIRST, chunk({"content": "hi"}, **(good | odd)), LAST, DONE, alias="oddv"
    )
    assert len(stream.calls) == 1
    assert stream.call.outcome is CallOutcome.success
    assert stream.call.choices[0].token_ids is None or set(odd) <= {
        "stop_reason",
        "finish_reason",
        "logprobs",
    }


@pytest.mark.parametrize("ids", [[2**40], ["a"], [None], [1.5], [-1], [[1]], "x", 5])
async def test_odd_ids_of_the_prompt_are_none(gateway: Gateway, ids: Any) -> None:
    answer = await whole(gateway, reply(token_ids=[7]) | {"prompt_token_ids": ids}, alias="oddv")
    ended_well(answer)
    assert (answer.call.prompt_token_ids, answer.call.prompt_hash) == (None, None)


async def test_two_choices_of_one_index_are_two_without_tokens(gateway: Gateway) -> None:
    both = [
        reply(token_ids=[n], message={"content": text})["choices"][0] for n, text in enumerate("ab")
    ]
    answer = await whole(gateway, reply() | {"choices": both}, alias="oddv")
    assert [(choice.index, choice.message, choice.token_ids) for choice in answer.call.choices] == [
        (0, '{"content":"a"}', None),
        (1, '{"content":"b"}', None),
    ]
    parts = [
        {"index": 0, "delta": {"content": text}, "finish_reason": None, "token_ids": [7]}
        for text in "ab"
    ]
    answer = await streamed(
        gateway, FIRST, sse(HEAD | {"choices": parts}), LAST, DONE, alias="oddv"
    )
    assert (answer.message["content"], answer.call.choices[0].token_ids) == ("ab", None)


@pytest.mark.parametrize(
    "odd", [[None], ["x"], [[]], [{"index": [], "function": {}}], {"a": 1}, "x"]
)
async def test_odd_tool_calls_leave_an_event(gateway: Gateway, odd: Any) -> None:
    answer = await streamed(gateway, FIRST, chunk({"tool_calls": odd}), LAST, DONE)
    assert len(answer.calls) == 1
    answer = await whole(gateway, reply(message={"content": "a", "tool_calls": odd}))
    assert len(answer.calls) == 1


@pytest.mark.parametrize("count", [2**31, 2**70, -1, 1.5, "3", True, None, []])
async def test_a_usage_that_is_none_is_null(gateway: Gateway, count: Any) -> None:
    answer = await whole(
        gateway, reply() | {"usage": {"prompt_tokens": count, "completion_tokens": 2}}
    )
    ended_well(answer)
    assert (answer.call.prompt_tokens, answer.call.completion_tokens) == (None, 2)
    usage = {"input_tokens": count, "cache_read_input_tokens": 2**31 - 1, "output_tokens": count}
    answer = await whole(
        gateway, {"content": [], "stop_reason": "end_turn", "usage": usage}, path=MESSAGES
    )
    ended_well(answer)
    assert answer.call.completion_tokens is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{"choices": [{"message": {"content": "a"}, "deep": ' + DEEP + b"}]}"),
        (CHAT, DEEP),
        (MESSAGES, b'{"content": [{"type": "text", "text": "a", "deep": ' + DEEP + b"}]}"),
        (RESPONSES, b'{"output": ' + DEEP + b"}"),
    ],
)
async def test_an_answer_nested_too_deep_is_an_error(
    gateway: Gateway, path: str, body: bytes
) -> None:
    failed(await whole(gateway, body, path=path), "not JSON")


async def test_arguments_nested_too_deep_are_arguments_that_do_not_parse(gateway: Gateway) -> None:
    function = {"name": "f", "arguments": DEEP.decode()}
    answer = await whole(
        gateway, reply(message={"content": None, "tool_calls": [{"id": "c", "function": function}]})
    )
    assert (answer.status, answer.call.failure) == (200, FailureKind.tool_parse_error)
    answer = await message_stream(
        gateway,
        [{"type": "tool_use", "id": "c", "name": "f", "input": {}}, delta(0, DEEP.decode())],
        "tool_use",
    )
    assert (answer.status, answer.call.failure) == (200, FailureKind.tool_parse_error)
    items = [{"type": "function_call", "call_id": "c", "name": "f", "arguments": DEEP.decode()}]
    answer = await whole(
        gateway, {"id": "r", "status": "completed", "output": items}, path=RESPONSES
    )
    assert (answer.status, answer.call.failure) == (200, FailureKind.tool_parse_error)


class Unwritable(Exception):
    """What no part of the gateway knows."""


@pytest.mark.parametrize(
    "error",
    [
        Unwritable("x"),
        RuntimeError("x"),
        UnicodeDecodeError("utf-8", b"", 0, 1, "x"),
        RecursionError(),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_whatever_an_upstream_raises_is_an_error_and_an_event(
    gateway: Gateway, error: Exception, stream: bool
) -> None:
    failed(
        await gateway.answer(CHAT, error, model="odd", messages=ASKED, stream=stream),
        "cannot be read",
    )


async def test_an_answer_that_makes_no_event_is_withheld_and_recorded_without_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise Unwritable

    for name in ("answers", "recorded_choices", "response"):
        with monkeypatch.context() as patch:
            patch.setattr(f"services.gateway.dialects.chat_capture.ChatCapture.{name}", fails)
            answer = await whole(gateway, reply())
            stream = await streamed(gateway, FIRST, LAST, DONE)
        if name == "answers":
            ended_well(answer)
            ended_well(stream)
        else:
            failed(answer, "cannot be recorded")
            failed(stream, "cannot be recorded", 200)
            assert answer.call.choices == stream.call.choices == ()


async def test_an_event_that_does_not_fit_its_schema_is_followed_by_one_that_does(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_: Any) -> str:
        return "\ud83c"

    monkeypatch.setattr("services.gateway.dialects.chat_capture.ChatCapture.response", half)
    failed(await whole(gateway, reply()), "cannot be recorded")
    answer = await streamed(gateway, FIRST)
    failed(answer, "ended before its answer did", 200)


# --- Keys
# ----------------------------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


async def test_a_key_that_the_model_repeats_is_in_no_event(gateway: Gateway) -> None:
    answer = await whole(
        gateway, reply(message={"content": f"your key is {KEY}."}, token_ids=[7]), alias="oddv"
    )
    assert KEY in answer.body.decode()
    assert KEY not in msgspec.json.encode(answer.call).decode()
    assert (answer.message["content"], answer.call.choices[0].token_ids) == (
        "your key is [redacted].",
        None,
    )
    answer = await whole(gateway, reply() | {"system_fingerprint": KEY})
    assert KEY not in (answer.call.response or "")


@pytest.mark.parametrize("key", ["x", "1", "test", "EMPTY"])
async def test_a_short_key_leaves_the_record_as_it_was_said(tmp_path: Path, key: str) -> None:
    said = f"a test of 1 box is EMPTY{key}"
    async with running(tmp_path, allow_any_key=True) as gateway:
        answer = await gateway.answer(
            CHAT,
            [json.dumps(reply(message={"content": said}, token_ids=[7])).encode()],
            key=key,
            model="oddv",
            messages=[{"role": "user", "content": said}],
        )
    assert said in (answer.call.request or "")
    assert answer.message["content"] == said
    assert answer.call.choices[0].token_ids is not None


@pytest.mark.parametrize(
    "spelled",
    [
        escaped(KEY),
        escaped(KEY[:3]) + KEY[3:],
        escaped(KEY).upper().replace("\\U", "\\u"),
        escaped(KEY).replace("\\", "\\\\"),
    ],
)
async def test_a_key_written_with_escapes_is_in_no_event(gateway: Gateway, spelled: str) -> None:
    arguments = (
        '{"content": "a", "tool_calls": [{"function": {"arguments": "'
        + spelled.replace("\\", "\\\\")
        + '"}}]}'
    )
    body = (
        json.dumps(reply())
        .replace(json.dumps(reply()["choices"][0]["message"]), arguments)
        .encode()
    )
    answer = await whole(gateway, body)
    assert spelled.replace("\\", "\\\\") not in (answer.call.choices[0].message or "")
    assert "[redacted]" in (answer.call.choices[0].message or "")


# --- Headers
# -------------------------------------------------------------------------------------------------------------------------


async def test_a_version_that_is_no_text_is_none(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Response:
        headers = {"x-fulgurite-version": "\udcff", "retry-after": "\udcff", "good": "policy@1.2"}  # noqa: RUF012

    upstream = UpstreamReply(Response(), "odd", 1)  # pyright: ignore[reportArgumentType]
    assert [
        upstream.header(name) for name in ("x-fulgurite-version", "retry-after", "good", "none")
    ] == [None, None, "policy@1.2", None]


def test_a_long_row_of_backslashes_is_looked_through_once() -> None:
    # From each of them to the end it would be 10^11 steps: this would not end.
    text = "\\u00e9" + "\\" * 500_000
    assert hide(text, KEY) == text
