"""The two shapes that a busy vLLM sends all the time, taken apart without building what is thrown
away anyway.

A chunk with one more piece of text, and many of them when they came together; and a whole answer
whose log-probabilities the agent did not ask for. Whatever looks otherwise is left to the general
way; both give the same bytes and the same record.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from services.gateway.dialects.capture import Json
from services.gateway.dialects.foreign_json import UNREADABLE
from services.gateway.dialects.packed import only_tokens


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


class Run(NamedTuple):
    """Chunks of one frame, one after the other, each behind a comment with its tokens."""

    texts: list[bytes]
    """Their texts, JSON as they came."""
    comments: bytes
    """The events before them, comments of our plug-in."""
    end: int
    """Where the last of them ends."""


class Frame(NamedTuple):
    """What stood around a chunk's text: where the same stands around it again, nothing else of the
    chunk is new.
    """

    head: bytes
    tail: bytes

    @classmethod
    def around(cls, content: bytes, event: bytes) -> Frame | None:
        """The frame of an event with this text, as JSON; None where that cannot be told."""
        head, found, tail = event.partition(b'"content":' + content)
        return cls(head + b'"content":', tail + b"\n\n") if found else None

    def text(self, event: bytes) -> str | None:
        """The text of an event in the same frame, whose closing blank line is not looked at; None
        for any other.
        """
        if not event.startswith(self.head) or not event.endswith(self.tail[:-2]):
            return None
        try:
            return _text(event[len(self.head) : 2 - len(self.tail)])
        except UNREADABLE:
            return None

    def run(self, data: bytes, at: int) -> Run | None:
        """The chunks of this frame from there on, each behind a comment with its tokens, up to
        whatever else comes; None without any.
        """
        comments: list[bytes] = []
        texts: list[bytes] = []
        for part in data[at:].split(self.tail)[:-1]:
            comment, _, chunk = part.partition(b"\n\n")
            if not chunk.startswith(self.head):
                break
            comments.append(comment)
            texts.append(chunk[len(self.head) :])
        told = b"\n\n".join([*comments, b""])
        if not only_tokens(told):
            return None
        return Run(
            texts,
            told,
            at + len(told) + sum(map(len, texts)) + len(texts) * (len(self.head) + len(self.tail)),
        )


encode = msgspec.json.Encoder().encode
"""For texts that were read here: they have no half characters."""
_text = msgspec.json.Decoder(str).decode
_texts = msgspec.json.Decoder(list[str]).decode


def strings(texts: list[bytes]) -> list[str] | None:
    """JSON strings, if they are, and written as we write them: then they can leave as they are."""
    written = b"[" + b",".join(texts) + b"]"
    try:
        said = _texts(written)
    except UNREADABLE:
        return None
    return said if len(said) == len(texts) and encode(said) == written else None


_chunk = msgspec.json.Decoder(Chunk).decode
_reply = msgspec.json.Decoder(_Reply).decode


def quick_chunk(data: bytes) -> Chunk | None:
    """The chunk, if it is of that shape."""
    try:
        chunk = _chunk(data)
    except UNREADABLE:
        return None
    return chunk if len(chunk.choices) == 1 else None


def quick_reply(raw: bytes) -> Json | None:
    """The answer, with `Logprobs` in place of each choice's log-probabilities. None if it holds
    anything that vLLM's does not.
    """
    try:
        reply = _reply(raw)
    except UNREADABLE:
        return None
    return {**_given(reply), "choices": [_given(choice) for choice in reply.choices]}


def _given(part: msgspec.Struct) -> Json:
    """Its fields, without those that were not there."""
    return {
        name: value
        for name in part.__struct_fields__
        if (value := getattr(part, name)) is not UNSET
    }
