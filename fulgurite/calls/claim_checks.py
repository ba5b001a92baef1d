"""Stores payloads that are too large for a message elsewhere, under their SHA-256.

The message then holds a claim check, which names the payload's place. There are two ways:
- In pieces: each long JSON string of request, response and messages, an image for example, is a
  payload, and is replaced by `fulgurite:claim:SHA256:BYTES`. Turns that repeat the string name the
  same payload, and the rest of the call is short enough for a delta (`fulgurite.calls.deltas`).
- As a whole, if pieces do not help: request, response and messages are one payload.

Ids, outcome, tokens, log-probabilities and finish reasons stay in the message, so a call is
stitched, trained and counted without its text. Both ways restore the text byte for byte.
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
"""A JSON string, or the rest of a text that ends within one. It never backtracks."""

_MOST_TEXT = 256 * 1024**2
"""Most characters of a call with its pieces: a forged call that names a piece many times must not
fill a reader's memory.
"""

_PLACEHOLDER = re.compile(rf'"{_MARK}([0-9a-f]{{64}}):([0-9]+)"')


class Payload(EventStruct, frozen=True, kw_only=True):
    """The content of a claim check for a whole call, as JSON."""

    request: str | None
    response: str | None
    messages: tuple[str | None, ...]
    """Messages of the choices, in their order."""


def payload_of(call: LlmCall) -> bytes:
    """Return the large part of a call as a payload."""
    messages = tuple(choice.message for choice in call.choices)
    return msgspec.json.encode(
        Payload(request=call.request, response=call.response, messages=messages)
    )


def digest(payload: bytes) -> str:
    """The name of a payload: its SHA-256 in hex."""
    return hashlib.sha256(payload).hexdigest()


def claims_of(call: LlmCall) -> tuple[ClaimCheck, ...]:
    """All claim checks of a call."""
    return call.pieces if call.claim_check is None else (call.claim_check, *call.pieces)


def leave(call: LlmCall, claim: ClaimCheck) -> LlmCall:
    """Replace the large part of a call by a claim check."""
    choices = tuple(msgspec.structs.replace(choice, message=None) for choice in call.choices)
    return msgspec.structs.replace(
        call, request=None, response=None, choices=choices, claim_check=claim
    )


def redeem(call: LlmCall, payload: bytes) -> LlmCall:
    """Undo `leave`. Raises BadClaim if the payload is not the one that was stored."""
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
        raise BadClaim(f"{claim.uri} is not a payload of call {call.call_id}: {error}") from error
    return msgspec.structs.replace(
        call, request=found.request, response=found.response, choices=choices, claim_check=None
    )


def extract_pieces(call: LlmCall, least: int) -> tuple[LlmCall, dict[str, bytes]]:
    """Replace JSON strings of `least` characters or more by placeholders.

    Returns the call, whose `pieces` are still to be filled, and the texts by their digests. A call
    whose text contains something like a placeholder is not changed, because the two could not be
    told apart. Neither is a call of more than 256 Mi characters.
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
    """Undo `extract_pieces`, given the payloads by their digests.

    Raises BadClaim if one is missing or altered.
    """
    if not call.pieces:
        return call
    texts: dict[str, str] = {}
    for claim in call.pieces:
        payload = payloads.get(claim.sha256)
        if payload is None:
            raise BadClaim(f"call {call.call_id}: its payload {claim.uri} was not read")
        _prove(call, claim, payload)
        texts[claim.sha256] = payload.decode("utf-8", "surrogatepass")

    size = 0

    def put_back(match: re.Match[str]) -> str:
        nonlocal size
        if match[1] not in texts:
            raise BadClaim(f"call {call.call_id} has no claim check for its text {match[1]}")
        size += len(texts[match[1]])
        if size > _MOST_TEXT:
            raise BadClaim(
                f"call {call.call_id} has more than {_MOST_TEXT:,} characters with its payloads"
            )
        return f'"{texts[match[1]]}"'

    restored = _mapped(call, lambda text: _PLACEHOLDER.sub(put_back, text))
    return msgspec.structs.replace(restored, pieces=())


def described(text: str) -> str:
    """A text for people, with placeholders replaced by the sizes of their payloads."""
    return re.sub(
        rf"{_MARK}[0-9a-f]{{64}}:([0-9]+)",
        lambda match: f"[{int(match[1]):,} bytes in the claims store]",
        text,
    )


def _prove(call: LlmCall, claim: ClaimCheck, payload: bytes) -> None:
    if digest(payload) != claim.sha256:
        raise BadClaim(
            f"{claim.uri} is not what call {call.call_id} stored there: its SHA-256 is "
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
