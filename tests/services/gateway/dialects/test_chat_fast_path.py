"""The fast path through chat completions gives the agent the same bytes and the log the same record
as the general way.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.dialects.chat_capture import ChatCapture
from services.gateway.dialects.choices import Wants
from services.gateway.http.sse_relay import StreamRelay
from tests.services.gateway.dialects.samples import tokens

_HEAD = {
    "id": "chatcmpl-up",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "served",
}
NOTHING = Wants(logprobs=False, token_ids=False, usage=False)
_TEXT = st.text(max_size=6)
_LOGPROB = st.floats(-20, 0)


class General(ChatCapture):
    """Without the fast path."""

    def parse_common_chunk(self, event: bytes) -> bytes | None:
        return None

    def decode_reply(self, raw: bytes) -> Any:
        return json.loads(raw)


def token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}


def written(chunk: dict[str, Any], *, ascii_only: bool = True) -> bytes:
    """As vLLM writes it."""
    return b"data: " + json.dumps(chunk, separators=(",", ":"), ensure_ascii=ascii_only).encode()


@st.composite
def parts(draw: st.DrawFn) -> dict[str, Any]:
    text, logprob = draw(_TEXT), draw(_LOGPROB)
    part: dict[str, Any] = {
        "index": draw(st.integers(0, 1)),
        "delta": draw(
            st.sampled_from(
                [{"content": text}, {"role": "assistant", "content": ""}, {"reasoning": text}, {}]
            )
        ),
        "logprobs": draw(
            st.sampled_from([{"content": [token(text, logprob)]}, {"content": None}, None])
        ),
        "finish_reason": draw(st.sampled_from([None, None, None, None, "stop"])),
        "token_ids": draw(st.sampled_from([[7], [7, 8], None])),
    }
    extra = draw(st.sampled_from([None, None, "stop_reason", "new"]))
    return part if extra is None else {**part, extra: None}


@st.composite
def events(draw: st.DrawFn) -> list[bytes]:
    chunks = [{**_HEAD, "choices": [part]} for part in draw(st.lists(parts(), max_size=12))]
    opening = {
        **_HEAD,
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}],
        "prompt_token_ids": [1, 2],
    }
    return [written(chunk) for chunk in [opening, *chunks]]


def relayed(capture: ChatCapture, sent: list[bytes]) -> tuple[Any, ...]:
    relay = StreamRelay(capture)
    passed = [relay.relay_event(event) for event in sent]
    return (
        passed,
        relay.held,
        capture.recorded_choices(),
        capture.response(),
        capture.finished(),
        capture.failure(),
        capture.prompt_token_ids,
    )


@given(
    events(), st.builds(Wants, logprobs=st.booleans(), token_ids=st.booleans(), usage=st.booleans())
)
def test_a_stream(sent: list[bytes], wants: Wants) -> None:
    assert relayed(ChatCapture("ours", "alias", wants), sent) == relayed(
        General("ours", "alias", wants), sent
    )


@st.composite
def packed_streams(draw: st.DrawFn) -> list[bytes]:
    """As vLLM writes it when the plug-in has the tokens: chunks that differ in their text, and now
    and then in something else.
    """
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [
        {"content": text}
        for text in draw(
            st.lists(
                st.text(max_size=3) | st.sampled_from(['"', "content", '":"', "é"]), max_size=9
            )
        )
    ]
    odd = draw(
        st.sampled_from(
            [
                None,
                {"content": ["part"]},
                {"content": None},
                {"reasoning": "r", "content": "a"},
                {"content": "a" * 9},
            ]
        )
    )
    if odd is not None:
        deltas.insert(draw(st.integers(1, len(deltas))), odd)
    chunks = [
        {**_HEAD, "choices": [{"index": 0, "delta": d, "logprobs": None, "finish_reason": None}]}
        for d in deltas
    ]
    ascii_only = draw(st.booleans())
    return [written(chunk, ascii_only=ascii_only) for chunk in chunks]


@given(packed_streams())
def test_a_stream_whose_tokens_come_beside_it(sent: list[bytes]) -> None:
    assert relayed(ChatCapture("ours", "alias", NOTHING), sent) == relayed(
        General("ours", "alias", NOTHING), sent
    )


_ODD = [
    b": keep-alive",
    b": fulgurite-version policy@1.2",
    b": fulgurite-tokens 1 - AAAA AAAA",
    b": fulgurite-tokens broken",
    b": fulgurite-tokens 0 - AQAAAA== AACAPw==\ndata: {}",
    b"data: {}",
    b"data: \0",
    b"event: x\ndata: {}",
]


@st.composite
def heaps(draw: st.DrawFn) -> list[bytes]:
    """Long streams of chunks, most with a comment before them, now and then something odd among
    them, cut anywhere.
    """
    texts = draw(
        st.lists(
            st.text(max_size=3) | st.sampled_from(["tok", '"', "\\", "é"]), min_size=8, max_size=24
        )
    )
    ascii_only, commented = draw(st.booleans()), draw(st.booleans())
    events: list[bytes] = []
    for number, text in enumerate(["", *texts]):
        delta = {"role": "assistant", "content": ""} if number == 0 else {"content": text}
        part = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        if commented and number:
            events.append(tokens([1, 2] if number == 1 else [], [number], [-0.5]))
        events.append(written({**_HEAD, "choices": [part]}, ascii_only=ascii_only))
    for _ in range(draw(st.integers(0, 2))):
        events.insert(draw(st.integers(1, len(events))), draw(st.sampled_from([*_ODD, *events])))
    last = {"index": 0, "delta": {"content": "end"}, "logprobs": None, "finish_reason": "stop"}
    events += [written({**_HEAD, "choices": [last]}), b"data: [DONE]"]
    text, pieces = b"".join(event + b"\n\n" for event in events), list[bytes]()
    while text:
        size = draw(st.sampled_from([len(text), 1_500, 4_000]) | st.integers(1, len(text)))
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def fed(capture: ChatCapture, pieces: list[bytes]) -> tuple[Any, ...]:
    relay = StreamRelay(capture)
    passed = b"".join(map(relay.feed, pieces))
    return (
        passed,
        relay.held,
        capture.recorded_choices(),
        capture.prompt(),
        capture.version_last,
        capture.finished(),
        capture.failure(),
    )


@given(heaps())
def test_chunks_that_come_together(pieces: list[bytes]) -> None:
    assert fed(ChatCapture("ours", "alias", NOTHING), pieces) == fed(
        General("ours", "alias", NOTHING), pieces
    )


def test_the_usual_chunk_takes_the_fast_path() -> None:
    capture = ChatCapture("ours", "alias", Wants(logprobs=False, token_ids=False, usage=False))
    part = {
        "index": 0,
        "delta": {"content": "a"},
        "logprobs": {"content": [token("a", -0.5)]},
        "finish_reason": None,
        "token_ids": [5],
    }
    event = written({**_HEAD, "choices": [part]})
    assert capture.parse_common_chunk(event) is None, "nothing is known of this choice yet"
    capture.parse_chunk(
        {
            **_HEAD,
            "choices": [
                {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            ],
        }
    )
    passed = capture.parse_common_chunk(event)
    assert passed is not None
    assert json.loads(passed[6:])["choices"][0] == {
        "index": 0,
        "delta": {"content": "a"},
        "logprobs": None,
        "finish_reason": None,
    }


@given(
    st.lists(st.tuples(_TEXT, _LOGPROB), max_size=5),
    st.booleans(),
    st.sampled_from([{}, {"kv_transfer_params": None, "new": [1]}]),
)
def test_a_whole_answer(
    said: list[tuple[str, float]], wants_logprobs: bool, more: dict[str, Any]
) -> None:
    message = {"role": "assistant", "content": "".join(text for text, _ in said)}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": [token(*one) for one in said]},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 2, "completion_tokens": len(said)}
    reply = {
        **_HEAD,
        "choices": [{**choice, "token_ids": [7] * len(said)}],
        "usage": usage,
        "prompt_token_ids": [1, 2],
        **more,
    }
    raw, wants = (
        json.dumps(reply).encode(),
        Wants(logprobs=wants_logprobs, token_ids=False, usage=False),
    )
    fast, general = ChatCapture("ours", "alias", wants), General("ours", "alias", wants)
    passed, expected = (
        fast.parse_reply(fast.decode_reply(raw)),
        general.parse_reply(general.decode_reply(raw)),
    )
    assert passed is not None
    assert expected is not None
    # The order of fields is vLLM's, whatever it was.
    assert json.loads(passed) == json.loads(expected)
    assert fast.recorded_choices() == general.recorded_choices()
    assert json.loads(fast.response() or "") == json.loads(general.response() or "")
