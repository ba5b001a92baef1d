"""Whatever a client sends: an answer in the API's shape, never a 5xx of ours, and one event for
each call of a known key.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.enums import CallOutcome
from tests.fuzz.gateway import ADMIN, PLAIN, InProcess, in_process
from tests.fuzz.requests import EXAMPLES, REST, Request, any_request, check, declared

SOUND = b'{"model":"policy","messages":[{"role":"user","content":"hi"}],"input":"hi","prompt":"hi","max_tokens":5}'
CALLS = sorted(EXAMPLES)
ENCODINGS: dict[str | None, Callable[[bytes], bytes]] = {
    None: bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": lambda data: bytes(cramjam.zstd.compress(data)),
    "br": bytes,
}
TEXTS = st.text(alphabet=st.characters(exclude_categories=()), max_size=8)
"""Half characters among them."""
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
)
BODIES = st.one_of(
    st.binary(max_size=200),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(
        st.sampled_from(
            ["model", "messages", "input", "prompt", "stream", "n", "value", "name", "task", "kind"]
        ),
        VALUES,
    ).map(
        lambda fields: json.dumps({"model": "policy"} | fields, ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )
    ),
    st.integers(1, 3000).map(
        lambda deep: b'{"model":"policy","messages":' + b"[" * deep + b"]" * deep + b"}"
    ),
    st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "utf-16-be"]).map(
        lambda name: SOUND.decode().encode(name)
    ),
)


def asked(folder: Path, make: Callable[[InProcess], Any]) -> Any:
    """What `make` returns, over a gateway of its own."""

    async def go() -> Any:
        async with in_process(folder) as gateway:
            return await make(gateway)

    return asyncio.run(go())


@pytest.mark.parametrize("path", [*CALLS, *REST])
def test_any_body_under_any_encoding(tmp_path: Path, path: str) -> None:
    async def every(gateway: InProcess) -> None:
        keys, loop = await declared(gateway), asyncio.get_running_loop()

        @settings(max_examples=40, deadline=None)
        @given(BODIES, st.sampled_from([*ENCODINGS]), st.booleans(), st.integers(1, 3))
        def one(body: bytes, encoding: str | None, squeezed: bool, pieces: int) -> None:
            data = ENCODINGS[encoding](body) if squeezed else body
            headers = [("authorization", f"Bearer {ADMIN}")] + (
                [("content-encoding", encoding)] if encoding else []
            )
            request = Request(
                "POST",
                path.replace("{rollout}", keys.rollout),
                headers,
                data,
                pieces,
                path in EXAMPLES,
            )
            asyncio.run_coroutine_threadsafe(check(gateway, request), loop).result()

        await asyncio.to_thread(one)

    asked(tmp_path, every)


def test_any_request_to_any_route(tmp_path: Path) -> None:
    async def every(gateway: InProcess) -> None:
        keys, loop = await declared(gateway), asyncio.get_running_loop()

        @settings(max_examples=400, deadline=None)
        @given(st.integers(0, 1 << 60))
        def one(seed: int) -> None:
            asyncio.run_coroutine_threadsafe(
                check(gateway, any_request(Random(seed), keys)), loop
            ).result()

        await asyncio.to_thread(one)

    asked(tmp_path, every)


BROKEN: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "not UTF-8": (lambda sound: sound.replace(b"MARK", b"\xff"), 400),
    "half a character": (lambda sound: sound.replace(b"MARK", b"\\ud83c"), 400),
    "halves the wrong way round": (lambda sound: sound.replace(b"MARK", b"\\udf0d\\ud83c"), 400),
    "two halves": (lambda sound: sound.replace(b"MARK", b"\\ud83c\\udf0d"), 200),
    "byte order mark": (lambda sound: b"\xef\xbb\xbf" + sound, 200),
    "UTF-16": (lambda sound: sound.decode().encode("utf-16"), 400),
    "nested": (lambda sound: sound[:-1] + b',"x":' + b"[" * 128 + b"]" * 128 + b"}", 400),
    "nested beyond the parser": (
        lambda sound: sound[:-1] + b',"x":' + b"[" * 1500 + b"]" * 1500 + b"}",
        400,
    ),
    "many values": (lambda sound: sound[:-1] + b',"x":[' + b"[]," * 2000 + b"0]}", 413),
    "many bytes": (lambda sound: sound + b" " * 70_000, 413),
    "sound": (bytes, 200),
}


@pytest.mark.parametrize("path", CALLS)
def test_bodies_in_every_api(tmp_path: Path, path: str) -> None:
    sound = json.dumps(EXAMPLES[path] | {"metadata": {"x": "MARK"}}).encode()

    async def every(gateway: InProcess) -> None:
        for name, (changed, status) in BROKEN.items():
            request = Request(
                "POST", path, [("authorization", f"Bearer {PLAIN}")], changed(sound), 1, known=True
            )
            answer = await check(gateway, request)
            [call] = gateway.calls()
            assert (name, answer.status, call.status_code) == (name, status, status)
            assert call.outcome is (CallOutcome.success if status == 200 else CallOutcome.refused)
            assert len(call.request or "") < 8300
            assert status == 200 or ("type" in answer.json()) is path.startswith("/v1/messages")

    asked(tmp_path, every)


def test_a_large_conversation_is_recognised_outside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same conversation, whichever way it was hashed."""

    async def talk(gateway: InProcess) -> list[str]:
        headers = [("authorization", f"Bearer {PLAIN}")]
        turns: list[dict[str, Any]] = [{"role": "user", "content": "x" * 200_000}]
        rollouts: list[str] = []
        for _ in range(3):
            answer = await gateway.ask(
                "POST",
                "/v1/chat/completions",
                headers,
                json.dumps({"model": "other", "messages": turns}).encode(),
            )
            rollouts.append(answer.headers["x-fulgurite-rollout-id"])
            turns += [answer.json()["choices"][0]["message"], {"role": "user", "content": "go on"}]
        return rollouts

    async def over(folder: Path) -> list[str]:
        async with in_process(folder, max_body_bytes=10_000_000) as gateway:
            return await talk(gateway)

    assert len(set(asyncio.run(over(tmp_path)))) == 1
