"""A stream that is kept alive: something comes in every silence, between events only, and never
after the end.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI
from starlette.types import Message

from services.gateway.dialects.anthropic_errors import PING
from services.gateway.dialects.openai_errors import COMMENT
from services.gateway.errors import InvalidRequest
from services.gateway.http.event_stream import (
    KEEP_ALIVE_HEADER,
    EventStream,
    KeptAlive,
    keep_alive_s,
)

QUICK_S = 0.001


class Client:
    """What was sent, and a way to wait for more; a slow one takes what it is sent only when it is
    let.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.changed = asyncio.Condition()
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        async with self.changed:
            self.messages.append(message)
            self.changed.notify_all()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    async def beats(self, count: int, beat: bytes = COMMENT) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.body.count(beat) >= count)


def kept(client: Client, beat: bytes = COMMENT) -> KeptAlive:
    return KeptAlive(client.send, lambda: [(b"x", b"y")], beat, QUICK_S)


async def test_a_silence_before_anything_begins_the_reply() -> None:
    client = Client()
    async with kept(client) as stream:
        await client.beats(2)
        assert stream.begun
        await stream.start()
        await stream.piece(b"data: 1\n\n")
        seen = client.body.count(COMMENT)
        await client.beats(seen + 2)
        await stream.end(b"data: [DONE]\n\n")
    starts = [message for message in client.messages if message["type"] == "http.response.start"]
    assert [(start["status"], (b"x", b"y") in start["headers"]) for start in starts] == [
        (200, True)
    ]
    assert client.messages[-1]["body"] == b"data: [DONE]\n\n"
    assert client.body.replace(COMMENT, b"") == b"data: 1\n\ndata: [DONE]\n\n"


async def test_what_has_not_begun_when_it_settles_never_begins() -> None:
    client = Client()
    async with KeptAlive(client.send, list, COMMENT, 3600) as stream:
        await stream.stop_keep_alive()
        assert not stream.begun
    assert client.messages == []


async def test_nothing_is_said_within_an_event() -> None:
    client = Client()
    async with kept(client) as stream:
        await stream.start()
        await stream.piece(b"data: half")
        before = client.body
        for _ in range(200):
            await asyncio.sleep(QUICK_S / 10)
        assert client.body == before
        await stream.piece(b" and half\n\n")
        await client.beats(client.body.count(COMMENT) + 1)
        await stream.end(b"")
    assert b"data: half and half\n\n" in client.body


async def test_nothing_overtakes_what_a_slow_client_has_not_taken() -> None:
    client = Client()
    async with kept(client) as stream:
        await stream.start()
        client.reads.clear()
        writing = asyncio.create_task(stream.piece(b"data: slow\n\n"))
        for _ in range(200):
            await asyncio.sleep(QUICK_S / 10)
        client.reads.set()
        await writing
        await stream.end(b"data: end\n\n")
    assert client.body.replace(COMMENT, b"") == b"data: slow\n\ndata: end\n\n"


async def test_who_leaves_hears_no_more() -> None:
    client = Client()
    async with kept(client):
        await client.beats(1)
    said = client.body
    for _ in range(100):
        await asyncio.sleep(QUICK_S / 10)
    assert client.body == said


@given(
    st.lists(st.tuples(st.binary(max_size=6), st.integers(0, 3)), max_size=8),
    st.sampled_from((COMMENT, PING)),
)
@settings(max_examples=40, deadline=None)
def test_events_are_what_they_were_without_what_keeps_alive(
    events: list[tuple[bytes, int]], beat: bytes
) -> None:
    async def play() -> bytes:
        client = Client()
        async with kept(client, beat) as stream:
            for text, silences in events:
                await stream.start()
                await stream.piece(b"data: " + text.hex().encode() + b"\n\n")
                await client.beats(client.body.count(beat) + silences, beat)
            await stream.stop_keep_alive()
            await stream.start()
            await stream.end(b"data: end\n\n")
        assert client.messages[-1]["more_body"] is False
        return client.body.replace(beat, b"")

    assert (
        asyncio.run(play())
        == b"".join(b"data: " + text.hex().encode() + b"\n\n" for text, _ in events)
        + b"data: end\n\n"
    )


async def test_without_it_nothing_but_events_is_sent() -> None:
    client = Client()
    async with EventStream(client.send, list) as stream:
        await stream.start()
        await stream.piece(b"data: 1\n\n")
        await stream.end(b"data: 2\n\n")
    assert [message.get("body") for message in client.messages] == [
        None,
        b"data: 1\n\n",
        b"data: 2\n\n",
    ]


@pytest.mark.parametrize(
    ("asked", "expected"), [(None, 7.0), (b"5", 5.0), (b"0.5", 0.5), (b"0", 0.0), (b"3600", 3600.0)]
)
def test_the_client_says_how_long_a_silence_may_be(asked: bytes | None, expected: float) -> None:
    assert keep_alive_s({} if asked is None else {KEEP_ALIVE_HEADER: asked}, 7.0) == expected


@pytest.mark.parametrize(
    "asked", [b"", b"soon", b"-1", b"0.01", b"nan", b"inf", b"1e9", b"\xff" * 100]
)
def test_another_word_for_it_is_refused(asked: bytes) -> None:
    with pytest.raises(InvalidRequest, match="x-fulgurite-keep-alive"):
        keep_alive_s({KEEP_ALIVE_HEADER: asked}, 0.0)


def chunk(content: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}
    body = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


async def test_openais_client_skips_it() -> None:
    body = (
        COMMENT
        + chunk("Hello")
        + COMMENT
        + COMMENT
        + chunk(" there", "stop")
        + COMMENT
        + b"data: [DONE]\n\n"
    )

    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    message: Any = {"role": "user", "content": "hi"}
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        client = AsyncOpenAI(api_key="k", base_url="http://g/v1", http_client=cast(Any, http))
        stream = await client.chat.completions.create(model="m", messages=[message], stream=True)
        said = [piece.choices[0].delta.content async for piece in stream]
    assert said == ["Hello", " there"]
