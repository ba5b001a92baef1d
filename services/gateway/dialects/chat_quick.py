"""The two shapes that a busy vLLM sends all the time, taken apart without building what is thrown away anyway.

A chunk with one more piece of text, and a whole answer whose log-probabilities the agent did not ask for. Whatever looks otherwise is left
to the general way; both give the same bytes and the same record.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from services.gateway.capture import Json


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
    """One more piece of text of one choice, and nothing else."""

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
    fulgurite_tokens: Any = UNSET
    """Our plug-in's, see `packed`."""


class Frame(NamedTuple):
    """What stood around a chunk's text: where the same stands around it again, nothing else of the chunk is new."""

    head: bytes
    tail: bytes

    @classmethod
    def around(cls, content: bytes, data: bytes) -> Frame | None:
        """The frame of a chunk with this text, as JSON; None where that cannot be told."""
        head, found, tail = data.partition(b'"content":' + content)
        return cls(head + b'"content":', tail) if found else None

    def text(self, data: bytes) -> str | None:
        """The text of a chunk in the same frame; None for any other."""
        if not data.startswith(self.head) or not data.endswith(self.tail):
            return None
        try:
            return _text(data[len(self.head) : len(data) - len(self.tail)])
        except msgspec.DecodeError:
            return None


_text = msgspec.json.Decoder(str).decode
_chunk = msgspec.json.Decoder(Chunk).decode
_reply = msgspec.json.Decoder(_Reply).decode


def quick_chunk(data: bytes) -> Chunk | None:
    """The chunk, if it is of that shape."""
    try:
        chunk = _chunk(data)
    except msgspec.DecodeError:
        return None
    return chunk if len(chunk.choices) == 1 else None


def quick_reply(raw: bytes) -> Json | None:
    """The answer, with `Logprobs` in place of each choice's log-probabilities. None if it holds anything that vLLM's does not."""
    try:
        reply = _reply(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    return {**_given(reply), "choices": [_given(choice) for choice in reply.choices]}


def _given(part: msgspec.Struct) -> Json:
    """Its fields, without those that were not there."""
    return {name: value for name in part.__struct_fields__ if (value := getattr(part, name)) is not UNSET}
