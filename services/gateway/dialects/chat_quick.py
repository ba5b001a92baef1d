"""The two shapes that a busy vLLM sends all the time, taken apart without building what is thrown away anyway.

A chunk with one more piece of text, and a whole answer whose log-probabilities the agent did not ask for. Whatever looks otherwise is left
to the general way; both give the same bytes and the same record.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from services.gateway.capture import Json

_decode = msgspec.json.Decoder().decode


class Token(msgspec.Struct, gc=False):
    """Of a token's log-probabilities only its own."""

    logprob: float


class Logprobs(msgspec.Struct):
    """One entry a token."""

    content: list[Token]


class _Delta(msgspec.Struct, forbid_unknown_fields=True):
    content: str


class _Part(msgspec.Struct, forbid_unknown_fields=True):
    index: int
    delta: _Delta
    logprobs: Logprobs
    finish_reason: None
    token_ids: list[int]


class Chunk(msgspec.Struct, forbid_unknown_fields=True):
    """One more piece of text of one choice, and nothing else."""

    id: str
    object: str
    created: int
    model: str
    choices: list[_Part]


_chunk = msgspec.json.Decoder(Chunk).decode
_top = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_parts = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_logprobs = msgspec.json.Decoder(Logprobs).decode


def quick_chunk(data: bytes) -> Chunk | None:
    """The chunk, if it is of that shape."""
    try:
        chunk = _chunk(data)
    except msgspec.DecodeError:
        return None
    return chunk if len(chunk.choices) == 1 else None


def quick_reply(raw: bytes) -> Json | None:
    """The answer, with `Logprobs` in place of each choice's log-probabilities. None if it has no such shape."""
    try:
        reply = _top(raw)
        choices = [{name: _value(name, value) for name, value in part.items()} for part in _parts(reply["choices"])]
        return {name: choices if name == "choices" else _decode(value) for name, value in reply.items()}
    except (msgspec.DecodeError, KeyError, RecursionError):
        return None


def _value(name: str, value: msgspec.Raw) -> Any:
    return cast(Any, _logprobs(value) if name == "logprobs" else _decode(value))
