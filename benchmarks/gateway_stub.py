"""A model server that answers at once, as vLLM does: ids and log-probabilities of every token,
whole or as server-sent events; packed for whoever asks as our gateway does, as by our vLLM plug-in
(`--bare` is a vLLM without it).

A process of its own that does next to nothing per request: bytes made beforehand, written to the
socket. `--pace-ms` waits between the chunks of a stream, as an engine does; `--hold` never ends a
stream. Prints its port.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, cast

import uvloop

from fulgurite.tokens import pack_ids, pack_logprobs

_HEAD = (
    b"HTTP/1.1 200 OK\r\nx-fulgurite-version: policy@1.0\r\nx-fulgurite-version-last: "
    b"policy@1.0\r\n"
)
_STREAM_HEAD = (
    _HEAD + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_END = b"0\r\n\r\n"
_IN_BODY = b',"logprobs":true,"return_token_ids":true}'
_VARIANTS = 31
"""So that no call looks like the one before: what is alike, the log stores once, and that would
flatter.
"""


def _logprob(number: int) -> dict[str, Any]:
    token = f" tok{number % 50}"
    return {
        "token": token,
        "logprob": -0.0123456789 * (number % 97 + 1),
        "bytes": list(token.encode()),
        "top_logprobs": [],
    }


def whole(prompt: int, answer: int, variant: int = 0, *, packed: bool = False) -> bytes:
    """A chat completion. Prompts of other variants share no first token."""
    message = {
        "role": "assistant",
        "content": "".join(_logprob(i)["token"] for i in range(answer)),
        "refusal": None,
        "annotations": None,
    }
    message |= {"audio": None, "function_call": None, "tool_calls": [], "reasoning": None}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": [_logprob(i) for i in range(answer)]},
        "finish_reason": "stop",
    }
    choice |= {"stop_reason": None, "token_ids": [100 + i for i in range(answer)]}
    body: dict[str, Any] = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "policy",
        "choices": [choice],
    }
    body |= {
        "service_tier": None,
        "system_fingerprint": None,
        "usage": _usage(prompt, answer),
        "prompt_logprobs": None,
    }
    body |= {"prompt_token_ids": _prompt(prompt, variant), "kv_transfer_params": None}
    if packed:
        choice["logprobs"] = body["prompt_token_ids"] = choice["token_ids"] = None
        body["fulgurite_tokens"] = [
            [part.decode() for part in _packed(_prompt(prompt, variant), range(answer))]
        ]
    return json.dumps(body, separators=(",", ":")).encode()


def chunks(prompt: int, answer: int, variant: int = 0, *, packed: bool = False) -> list[bytes]:
    """A stream's events: one with the role, one a token, one with the usage, `[DONE]`."""
    head = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "policy",
    }
    first: dict[str, Any] = {
        **head,
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        ],
    }
    first |= {} if packed else {"prompt_token_ids": _prompt(prompt, variant)}
    events: list[dict[str, Any]] = [first]
    comments = [b""]
    for number in range(answer):
        finish = "stop" if number == answer - 1 else None
        said = _logprob(number)
        part = {
            "index": 0,
            "delta": {"content": said["token"]},
            "logprobs": {"content": [said]},
            "finish_reason": finish,
        }
        part |= {"stop_reason": None} if finish else {}
        part |= {"logprobs": None} if packed else {"token_ids": [100 + number]}
        events.append({**head, "choices": [part]})
        new = b" ".join(_packed(_prompt(prompt, variant) if number == 0 else [], [number]))
        comments.append(b": fulgurite-tokens 0 " + new + b"\n\n" if packed else b"")
    events.append({**head, "choices": [], "usage": _usage(prompt, answer)})
    data = [
        b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n" for event in events
    ]
    return [
        *(comment + event for comment, event in zip([*comments, b""], data, strict=True)),
        b"data: [DONE]\n\n",
    ]


def _packed(prompt: Sequence[int], answer: Sequence[int]) -> list[bytes]:
    logprobs = pack_logprobs([_logprob(i)["logprob"] for i in answer])
    return [
        b64encode(part) or b"-"
        for part in (pack_ids(prompt), pack_ids([100 + i for i in answer]), logprobs)
    ]


def _prompt(length: int, variant: int) -> list[int]:
    return [(i * 7 + variant) % 49_152 for i in range(length)]


def _usage(prompt: int, answer: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + answer,
        "completion_tokens": answer,
        "prompt_tokens_details": None,
    }


class Stub(asyncio.Protocol):
    """One connection."""

    answers: tuple[tuple[bytes, ...], ...] = ()
    """Of variants; in JSON, then packed."""
    events: tuple[tuple[tuple[bytes, ...], ...], ...] = ()
    bare = False
    turn = 0
    pace_s = 0.0
    hold = False

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Answer whenever a request is complete."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[: end + 2].lower()
        at = head.find(b"content-length:")
        size = 0 if at < 0 else int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + size:
            return
        body, self._buffer = self._buffer[end + 4 :], b""
        self._reply(head, body)

    def _reply(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        packed = (
            not self.bare
            and b"\r\nx-fulgurite-tokens: instead\r\n" in head
            and body.endswith(_IN_BODY)
        )
        if head.startswith(b"get "):
            self._transport.write(_HEAD + b"content-length: 0\r\n\r\n")
        elif b'"stream":true' in body or b'"stream": true' in body:
            self._transport.write(_STREAM_HEAD)
            self._next(self.events[packed][self._variant()], 0)
        else:
            self._transport.write(self.answers[packed][self._variant()])

    def _variant(self) -> int:
        Stub.turn += 1
        return Stub.turn % _VARIANTS

    def _next(self, events: tuple[bytes, ...], number: int) -> None:
        while self._transport is not None:
            if number == len(events):
                self._transport.write(_END)
                return
            self._transport.write(events[number])
            number += 1
            if self.hold and number > 1:
                return
            if self.pace_s:
                asyncio.get_running_loop().call_later(self.pace_s, self._next, events, number)
                return


def _replied(body: bytes) -> bytes:
    return (
        _HEAD + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt-tokens", type=int, default=1000)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--pace-ms", type=float, default=0.0)
    parser.add_argument("--hold", action="store_true")
    parser.add_argument("--bare", action="store_true", help="never packed")
    given = parser.parse_args()
    sizes = (given.prompt_tokens, given.answer_tokens)
    both = (False, True)
    Stub.answers = tuple(
        tuple(_replied(whole(*sizes, v, packed=p)) for v in range(_VARIANTS)) for p in both
    )
    Stub.events = tuple(
        tuple(tuple(map(_chunked, chunks(*sizes, v, packed=p))) for v in range(_VARIANTS))
        for p in both
    )
    Stub.pace_s, Stub.hold, Stub.bare = given.pace_ms / 1000, given.hold, given.bare
    uvloop.run(_serve())


if __name__ == "__main__":
    main()
