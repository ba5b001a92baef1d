"""Claim checks: what is too large for a message lies elsewhere, under its SHA-256, and the message says where.

What goes is text: request, response and the messages of the choices. What stays is what the loop needs: ids, outcome, tokens,
log-probabilities and finish reasons, so that a call is stitched, cut, trained and counted without its text.
"""

from __future__ import annotations

import hashlib

import msgspec

from fulgurite.errors import BadClaim
from fulgurite.events import ClaimCheck, LlmCall, Record


class Payload(Record, frozen=True, kw_only=True):
    """What lies elsewhere, as JSON."""

    request: str | None
    response: str | None
    messages: tuple[str | None, ...]
    """Of the choices, in their order."""


def payload_of(call: LlmCall) -> bytes:
    """The large part of a call."""
    messages = tuple(choice.message for choice in call.choices)
    return msgspec.json.encode(Payload(request=call.request, response=call.response, messages=messages))


def digest(payload: bytes) -> str:
    """What a payload is called: hex SHA-256."""
    return hashlib.sha256(payload).hexdigest()


def leave(call: LlmCall, claim: ClaimCheck) -> LlmCall:
    """The call without what lies elsewhere."""
    choices = tuple(msgspec.structs.replace(choice, message=None) for choice in call.choices)
    return msgspec.structs.replace(call, request=None, response=None, choices=choices, claim_check=claim)


def redeem(call: LlmCall, payload: bytes) -> LlmCall:
    """The inverse of `leave`. Raises BadClaim when the bytes are not those that were left."""
    claim = call.claim_check
    if claim is None:
        return call
    if digest(payload) != claim.sha256:
        raise BadClaim(f"{claim.uri} is not what call {call.call_id} left there: its SHA-256 is {digest(payload)}, not {claim.sha256}")
    try:
        found = msgspec.json.decode(payload, type=Payload)
        choices = tuple(msgspec.structs.replace(c, message=m) for c, m in zip(call.choices, found.messages, strict=True))
    except ValueError as error:
        raise BadClaim(f"{claim.uri} is no payload of call {call.call_id}: {error}") from error
    return msgspec.structs.replace(call, request=found.request, response=found.response, choices=choices, claim_check=None)
