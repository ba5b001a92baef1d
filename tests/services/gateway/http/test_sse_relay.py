"""What of a stream leaves at once, and what waits for the log."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from services.gateway.dialects.chat_capture import ChatCapture
from services.gateway.dialects.choices import Wants
from services.gateway.http.sse_relay import StreamRelay

WANTS = Wants(logprobs=False, token_ids=False, usage=True)


def event(*choices: tuple[int, str, str | None]) -> bytes:
    parts = [
        {"index": index, "delta": {"content": text}, "finish_reason": finish}
        for index, text, finish in choices
    ]
    return b"data: " + json.dumps({"id": "up", "choices": parts}).encode()


def relay() -> tuple[StreamRelay, ChatCapture]:
    capture = ChatCapture("ours", None, WANTS)
    return StreamRelay(capture), capture


def held(stream: StreamRelay) -> list[Any]:
    return [json.loads(data) if (data := out[6:-2]) != b"[DONE]" else "done" for out in stream.held]


def test_chunks_leave_at_once_and_the_finish_reason_waits() -> None:
    stream, _ = relay()
    assert stream.relay_event(event((0, "a", None))) is not None
    assert stream.relay_event(event((0, "b", "stop"))) is None
    assert stream.relay_event(b'data: {"choices": [], "usage": {"total_tokens": 1}}') is None
    assert stream.relay_event(b"data: [DONE]") is None
    finish, usage, done = held(stream)
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"] == {"total_tokens": 1}
    assert done == "done"


def test_a_choice_that_goes_on_is_not_held_up_by_one_that_ended() -> None:
    stream, _ = relay()
    assert stream.relay_event(event((0, "a", "stop"))) is None
    assert stream.relay_event(event((1, "b", None))) is not None
    assert stream.relay_event(event((0, "trailing", None), (1, "c", None))) is None
    assert stream.relay_event(event((1, "d", None))) is None, "it is after c"
    assert stream.relay_event(event((2, "e", None))) is not None
    assert len(stream.held) == 3


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 2), st.sampled_from([None, None, None, "stop"])),
            min_size=1,
            max_size=3,
        ),
        max_size=12,
    )
)
@example([[(0, "stop"), (1, None)], [(1, None)]])
def test_each_choice_gets_its_pieces_in_their_order(
    chunks: list[list[tuple[int, str | None]]],
) -> None:
    stream, _ = relay()
    sent: list[bytes] = []
    for number, chunk in enumerate(chunks):
        passed = stream.relay_event(event(*((index, f"{number},", end) for index, end in chunk)))
        sent += [] if passed is None else [passed]
    sent += stream.held
    pieces: dict[int, list[int]] = {}
    for out in sent:
        for part in json.loads(out[6:])["choices"]:
            pieces.setdefault(part["index"], []).append(int(part["delta"]["content"][:-1]))
    assert all(numbers == sorted(numbers) for numbers in pieces.values())


def test_the_version_is_noted_and_its_comment_does_not_leave() -> None:
    stream, capture = relay()
    assert stream.relay_event(b": fulgurite-version policy@1.7") is None
    assert capture.version_last == "policy@1.7"
    assert stream.relay_event(b": keep-alive") == b": keep-alive\n\n"
    assert b": keep-alive" in (stream.relay_event(b": keep-alive\n" + event((0, "a", None))) or b"")


def test_what_is_not_json_passes() -> None:
    stream, _ = relay()
    assert stream.relay_event(b"data: whatever") == b"data: whatever\n\n"
    assert stream.relay_event(b"data: [1]") == b"data: [1]\n\n"


def test_an_error_within_the_stream_does_not_release_what_is_held() -> None:
    stream, capture = relay()
    stream.relay_event(event((0, "a", "stop")))
    assert stream.relay_event(b'data: {"error": {"message": "died"}}') is None
    assert stream.error == b'data: {"error":{"message":"died"}}\n\n'
    assert capture.error == "died"


def test_data_over_several_lines_is_one_event() -> None:
    stream, capture = relay()
    passed = (
        stream.relay_event(
            b'event: x\ndata: {"choices": [\ndata: {"index": 0, "delta": {"content": "a"}}]}'
        )
        or b""
    )
    assert passed.startswith(b"event: x\ndata: {")
    assert capture.choices[0].message == {"content": "a"}


@given(
    st.lists(st.sampled_from([b"data: one", b": two", b"data: three\ndata: four"]), max_size=6),
    st.data(),
    st.booleans(),
)
def test_events_are_the_same_however_the_bytes_arrive(
    events: list[bytes], data: st.DataObject, crlf: bool
) -> None:
    text = b"".join(event + b"\n\n" for event in events)
    if crlf:
        text = text.replace(b"\n", b"\r\n")
    stream, _ = relay()
    passed = b""
    while text:
        size = data.draw(st.integers(1, len(text)))
        passed += stream.feed(text[:size])
        text = text[size:]
    one_by_one, _ = relay()
    assert passed == b"".join(one_by_one.relay_event(event) or b"" for event in events)
