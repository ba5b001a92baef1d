"""What the stub upstream answers, an API a class: whole replies and streams, as vLLM (with our
plug-in) or another server writes them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fulgurite.tokens import pack_ids, pack_logprobs

PROMPT_IDS = [1, 2, 3]
FIRST_ID = 10
"""Id of the first word; the others follow. The n-th word's log-probability is -n/2."""
Json = dict[str, Any]


@dataclass
class Script:
    """How the next answers look."""

    words: list[str] = field(default_factory=lambda: ["Hello", " there", "!"])
    words_of: Callable[[Json], list[str]] | None = None
    """If set, the words depend on the request."""
    vllm: bool = True
    finish_reason: str = "stop"
    tool_arguments: str | None = None
    """If set, the answer is one tool call with these arguments."""
    status: int = 200
    error: str = "it broke"
    hang: bool = False
    """Never answer."""
    waits: bool = False
    """Before the status of an answer, wait for `Stub.release`."""
    gates: bool = False
    """Before each chunk of a stream but the first, wait for `Stub.release`."""
    break_after: int | None = None
    """Cut the connection after that many chunks with content."""
    error_after: int | None = None
    """Send an error event after that many chunks with content."""
    version: str | None = "policy@1.7"
    version_last: str | None = "policy@1.8"


class Api(Protocol):
    """One API."""

    failure: bytes
    """The event of an engine that died."""
    done: bytes
    """What ends a stream."""

    def whole(self, body: Json, headers: Mapping[str, str], script: Script) -> Json:
        """A whole reply."""
        ...

    def events(self, body: Json, headers: Mapping[str, str], script: Script) -> list[bytes]:
        """A stream's events, without what ends it."""
        ...


class Chat:
    """OpenAI's chat completions."""

    failure = (
        b'data: {"error": {"message": "engine died", "type": "InternalServerError", '
        b'"code": 500}}\n\n'
    )
    done = b"data: [DONE]\n\n"

    def whole(self, body: Json, headers: Mapping[str, str], script: Script) -> Json:
        """See Api."""
        return whole_chat(body, script)

    def events(self, body: Json, headers: Mapping[str, str], script: Script) -> list[bytes]:
        """See Api."""
        return [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chat_chunks(body, script)]


class Completions(Chat):
    """OpenAI's completions: chat's choices, with texts."""

    def whole(self, body: Json, headers: Mapping[str, str], script: Script) -> Json:
        """See Api."""
        reply: Json = {
            **whole_chat(_asked(body), script),
            "id": "cmpl-upstream",
            "object": "text_completion",
        }
        prompt = reply.pop("prompt_token_ids", None)
        for choice in reply["choices"]:
            choice["text"] = choice.pop("message")["content"]
            _as_text(choice, prompt)
        return reply

    def events(self, body: Json, headers: Mapping[str, str], script: Script) -> list[bytes]:
        """See Api."""
        chunks = chat_chunks(_asked(body), script)
        prompt = chunks[0].pop("prompt_token_ids", None)
        for chunk in chunks:
            for choice in chunk["choices"]:
                choice["text"] = choice.pop("delta").get("content", "")
                _as_text(choice, prompt if choice["text"] == "" else None)
        return [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]


def _asked(body: Json) -> Json:
    """With chat's way to ask for log-probabilities: completions ask by a number, and 0 is one."""
    return {**body, "logprobs": body.get("logprobs") is not None}


def _as_text(choice: Json, prompt: list[int] | None) -> None:
    logprobs: Json = choice.get("logprobs") or {}
    content: list[Json] = logprobs.get("content") or []
    choice["logprobs"] = (
        {"token_logprobs": [entry["logprob"] for entry in content]} if content else None
    )
    choice["prompt_token_ids"] = prompt


def _logprobs(words: list[str], start: int) -> Json:
    content: list[Json] = [
        {"token": w, "logprob": -0.5 * (start + i + 1), "bytes": None, "top_logprobs": []}
        for i, w in enumerate(words)
    ]
    return {"content": content}


def _message(script: Script) -> Json:
    if script.tool_arguments is None:
        return {"role": "assistant", "content": "".join(script.words)}
    function = {"name": "calc", "arguments": script.tool_arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }


def _head(body: Json, kind: str) -> Json:
    return {
        "id": "chatcmpl-upstream",
        "object": kind,
        "created": 1_700_000_000,
        "model": body["model"],
    }


def _usage(script: Script) -> dict[str, int]:
    spoken = len(script.words)
    return {
        "prompt_tokens": len(PROMPT_IDS),
        "completion_tokens": spoken,
        "total_tokens": len(PROMPT_IDS) + spoken,
    }


def whole_chat(body: Json, script: Script) -> Json:
    choices: list[Json] = []
    for index in range(body.get("n") or 1):
        choice: Json = {
            "index": index,
            "message": _message(script),
            "finish_reason": script.finish_reason,
            "logprobs": None,
        }
        if script.vllm:
            choice["stop_reason"] = None
            choice["logprobs"] = _logprobs(script.words, 0) if body.get("logprobs") else None
            choice["token_ids"] = (
                [FIRST_ID + i for i in range(len(script.words))]
                if body.get("return_token_ids")
                else None
            )
        choices.append(choice)
    reply = {**_head(body, "chat.completion"), "choices": choices, "usage": _usage(script)}
    if script.vllm:
        reply["prompt_token_ids"] = PROMPT_IDS if body.get("return_token_ids") else None
    return reply


def chat_chunks(body: Json, script: Script) -> list[Json]:
    head = _head(body, "chat.completion.chunk")
    asked = body.get("return_token_ids")
    count = body.get("n") or 1
    chunks: list[Json] = []
    for index in range(count):
        first: Json = {**head, "choices": [_part(index, {"role": "assistant", "content": ""})]}
        if script.vllm and asked:
            first["prompt_token_ids"] = PROMPT_IDS
        chunks.append(first)
    for number, word in enumerate(script.words):
        for index in range(count):
            # Choices end at different times: the last word of choice 0 comes one round before that
            # of the others.
            last = number == len(script.words) - 1
            part = _part(index, {"content": word}, script.finish_reason if last else None)
            if script.vllm:
                part["logprobs"] = _logprobs([word], number) if body.get("logprobs") else None
                part["token_ids"] = [FIRST_ID + number] if asked else None
            chunks.append({**head, "choices": [part]})
    options: Json = body.get("stream_options") or {}
    if options.get("include_usage"):
        chunks.append({**head, "choices": [], "usage": _usage(script)})
    return chunks


def _part(index: int, delta: Json, finish_reason: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def named(event: Json) -> bytes:
    """An event with its name."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def tokens_comment(script: Script, headers: Mapping[str, str], number: int) -> bytes:
    """What our plug-in says before the n-th word."""
    if not script.vllm or headers.get("x-fulgurite-tokens") != "1":
        return b""
    return b": fulgurite-tokens 0 " + b" ".join(_packed([number], prompt=number == 0)) + b"\n\n"


def tokens_field(script: Script, headers: Mapping[str, str]) -> Json:
    """What our plug-in adds to a whole reply."""
    if not script.vllm or headers.get("x-fulgurite-tokens") != "1":
        return {}
    return {
        "fulgurite_tokens": [
            [part.decode() for part in _packed(list(range(len(script.words))), prompt=True)]
        ]
    }


def _packed(numbers: list[int], *, prompt: bool) -> list[bytes]:
    ids = pack_ids([FIRST_ID + number for number in numbers])
    logprobs = pack_logprobs([-0.5 * (number + 1) for number in numbers])
    return [
        base64.b64encode(pack_ids(PROMPT_IDS)) if prompt else b"-",
        base64.b64encode(ids),
        base64.b64encode(logprobs),
    ]
