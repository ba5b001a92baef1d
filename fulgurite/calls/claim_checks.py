"""Stores payloads that are too large for a message elsewhere, under their SHA-256.

The message then holds a claim check, which says where the payload lies.

A large call goes in one of two ways.

- By pieces: each long JSON string of request, response and messages, an image for example, is a
  payload of its own, and `fulgurite:claim:SHA256:BYTES` stands in its place. The turns that repeat
  it name the same payload, and what is left of them is short enough for a delta
  (`fulgurite.calls.deltas`).
- As a whole, where pieces do not help: request, response and messages are one payload.

What stays is what the loop needs: ids, outcome, tokens, log-probabilities and finish reasons, so
that a call is stitched, cut, trained and counted without its text. Both ways give back the text to
the byte.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping

import msgspec

from fulgurite.errors import BadClaim
from fulgurite.events import ClaimCheck, EventStruct, LlmCall

_MARK = "fulgurite:claim:"
_STRING = re.compile(r'"([^"\\]*+(?:\\.?+[^"\\]*+)*+)("|\Z)', re.DOTALL)
"""A JSON string, or the rest of a text that ends within one: never a second look at the same
characters.
"""

_MOST_TEXT = 256 * 1024**2
"""Characters of a call with its pieces: a forged one that names a piece over and over must not fill
a reader's memory.
"""

_PLACEHOLDER = re.compile(rf'"{_MARK}([0-9a-f]{{64}}):([0-9]+)"')


class Payload(EventStruct, frozen=True, kw_only=True):
    """What lies elsewhere as a whole, as JSON."""

    request: str | None
    response: str | None
    messages: tuple[str | None, ...]
    """Of the choices, in their order."""


def payload_of(call: LlmCall) -> bytes:
    """The large part of a call."""
    messages = tuple(choice.message for choice in call.choices)
    return msgspec.json.encode(
        Payload(request=call.request, response=call.response, messages=messages)
    )


def digest(payload: bytes) -> str:
    """What a payload is called: hex SHA-256."""
    return hashlib.sha256(payload).hexdigest()


def claims_of(call: LlmCall) -> tuple[ClaimCheck, ...]:
    """All that a call left elsewhere."""
    return call.pieces if call.claim_check is None else (call.claim_check, *call.pieces)


def leave(call: LlmCall, claim: ClaimCheck) -> LlmCall:
    """The call without what lies elsewhere as a whole."""
    choices = tuple(msgspec.structs.replace(choice, message=None) for choice in call.choices)
    return msgspec.structs.replace(
        call, request=None, response=None, choices=choices, claim_check=claim
    )


def redeem(call: LlmCall, payload: bytes) -> LlmCall:
    """The inverse of `leave`. Raises BadClaim when the bytes are not those that were left."""
    claim = call.claim_check
    if claim is None:
        return call
    _prove(call, claim, payload)
    try:
        found = msgspec.json.decode(payload, type=Payload)
        choices = tuple(
            msgspec.structs.replace(c, message=m)
            for c, m in zip(call.choices, found.messages, strict=True)
        )
    except ValueError as error:
        raise BadClaim(f"{claim.uri} is no payload of call {call.call_id}: {error}") from error
    return msgspec.structs.replace(
        call, request=found.request, response=found.response, choices=choices, claim_check=None
    )


def take_pieces(call: LlmCall, least: int) -> tuple[LlmCall, dict[str, bytes]]:
    """The call with a placeholder for each JSON string of so many characters or more, and these
    texts by their digests.

    Their claims are still to be named in `pieces`. A call whose text has something like a
    placeholder in it stays as it is: it could not be told from ours. So does one of over 256 Mi
    characters.
    """
    texts = [call.request, call.response, *(choice.message for choice in call.choices)]
    if (
        any(text and _MARK in text for text in texts)
        or sum(len(text or "") for text in texts) > _MOST_TEXT
    ):
        return call, {}
    found: dict[str, bytes] = {}

    def replaced(match: re.Match[str]) -> str:
        if match.end() - match.start() - 2 < least or not match[2]:
            return match[0]
        piece = match[1].encode("utf-8", "surrogatepass")
        name = digest(piece)
        found[name] = piece
        return f'"{_MARK}{name}:{len(piece)}"'

    return _mapped(
        call, lambda text: _STRING.sub(replaced, text) if len(text) > least else text
    ), found


def put_back_pieces(call: LlmCall, payloads: Mapping[str, bytes]) -> LlmCall:
    """The inverse of `take_pieces`, given the payloads by their digests. Raises BadClaim when one
    is missing, or not what was left.
    """
    if not call.pieces:
        return call
    texts: dict[str, str] = {}
    for claim in call.pieces:
        payload = payloads.get(claim.sha256)
        if payload is None:
            raise BadClaim(f"call {call.call_id} left {claim.uri} elsewhere, which was not read")
        _prove(call, claim, payload)
        texts[claim.sha256] = payload.decode("utf-8", "surrogatepass")

    size = 0

    def put_back(match: re.Match[str]) -> str:
        nonlocal size
        if match[1] not in texts:
            raise BadClaim(f"call {call.call_id} does not say where its text {match[1]} lies")
        size += len(texts[match[1]])
        if size > _MOST_TEXT:
            raise BadClaim(
                f"call {call.call_id} is larger than {_MOST_TEXT:,} characters with what it "
                "left elsewhere"
            )
        return f'"{texts[match[1]]}"'

    whole = _mapped(call, lambda text: _PLACEHOLDER.sub(put_back, text))
    return msgspec.structs.replace(whole, pieces=())


def described(text: str) -> str:
    """A text for people: placeholders say how much they stand for."""
    return re.sub(
        rf"{_MARK}[0-9a-f]{{64}}:([0-9]+)",
        lambda match: f"[{int(match[1]):,} bytes in the claims store]",
        text,
    )


def _prove(call: LlmCall, claim: ClaimCheck, payload: bytes) -> None:
    if digest(payload) != claim.sha256:
        raise BadClaim(
            f"{claim.uri} is not what call {call.call_id} left there: its SHA-256 is "
            f"{digest(payload)}, not {claim.sha256}"
        )


def _mapped(call: LlmCall, change: Callable[[str], str]) -> LlmCall:
    def changed(text: str | None) -> str | None:
        return None if text is None else change(text)

    choices = tuple(
        msgspec.structs.replace(choice, message=changed(choice.message)) for choice in call.choices
    )
    return msgspec.structs.replace(
        call, request=changed(call.request), response=changed(call.response), choices=choices
    )
