"""A fast path: typed decoding of the two shapes that vLLM sends most.

They are a stream's chunk with one more piece of text, and a complete answer whose log-probabilities
the agent did not ask for. A typed decoder skips what is not needed. Any other shape takes the
general path. Both paths give the same bytes and the same record.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from services.gateway.dialects.capture import Json
from services.gateway.dialects.foreign_json import UNREADABLE


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
    logprobs: Logprobs | None
    finish_reason: None
    token_ids: list[int] | None = None


class Chunk(msgspec.Struct, forbid_unknown_fields=True):
    """A chunk with one more piece of text of one choice, and nothing else."""

    id: str
    object: str
    created: int
    model: str
    choices: list[_Part]


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    """vLLM's choice, in its order."""

    index: int
    message: Json
    logprobs: Logprobs | UnsetType | None = UNSET
    finish_reason: str | UnsetType | None = UNSET
    stop_reason: Any = UNSET
    token_ids: list[int] | UnsetType | None = UNSET
    routed_experts: Any = UNSET


class _Reply(msgspec.Struct, forbid_unknown_fields=True):
    """vLLM's chat completion, in its order."""

    id: str
    object: str
    created: int
    model: str
    choices: list[_Choice]
    service_tier: Any = UNSET
    system_fingerprint: Any = UNSET
    usage: Any = UNSET
    prompt_logprobs: Any = UNSET
    prompt_token_ids: list[int] | UnsetType | None = UNSET
    prompt_text: Any = UNSET
    kv_transfer_params: Any = UNSET
    ec_transfer_params: Any = UNSET
    metrics: Any = UNSET


encode = msgspec.json.Encoder().encode
"""For texts that were decoded here: they hold no lone surrogates."""

_chunk = msgspec.json.Decoder(Chunk).decode
_reply = msgspec.json.Decoder(_Reply).decode


def decode_text_chunk(data: bytes) -> Chunk | None:
    """The chunk, if it has that shape; else None."""
    try:
        chunk = _chunk(data)
    except UNREADABLE:
        return None
    return chunk if len(chunk.choices) == 1 else None


def decode_vllm_reply(raw: bytes) -> Json | None:
    """The answer, with `Logprobs` in place of each choice's log-probabilities. None if it holds a
    field that vLLM's answers do not have.
    """
    try:
        reply = _reply(raw)
    except UNREADABLE:
        return None
    return {**_given(reply), "choices": [_given(choice) for choice in reply.choices]}


def _given(part: msgspec.Struct) -> Json:
    """The fields that were sent."""
    return {
        name: value
        for name in part.__struct_fields__
        if (value := getattr(part, name)) is not UNSET
    }
