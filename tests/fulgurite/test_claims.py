"""Claim checks: a call without its text, and with it again."""

from __future__ import annotations

import msgspec
import pytest

from fulgurite.claims import digest, leave, payload_of, redeem
from fulgurite.errors import BadClaim
from fulgurite.events import ClaimCheck, LlmCall
from fulgurite.trajectories import successful_actions
from tests.synthetic import make_call

CALL = msgspec.structs.replace(make_call(answers=[(7, 9), (8,)]), response='{"id": "x"}')


def left(call: LlmCall, payload: bytes) -> LlmCall:
    return leave(call, ClaimCheck(uri="file:///claims/x", sha256=digest(payload), size=len(payload)))


def test_what_stays_counts_and_trains_and_what_goes_comes_back() -> None:
    payload = payload_of(CALL)
    light = left(CALL, payload)
    assert (light.request, light.response, [choice.message for choice in light.choices]) == (None, None, [None, None])
    assert successful_actions(light) == successful_actions(CALL)
    assert (light.prompt_token_ids, light.choices[1].token_ids) == (CALL.prompt_token_ids, CALL.choices[1].token_ids)
    assert redeem(light, payload) == CALL


def test_a_call_without_a_claim_is_whole() -> None:
    assert redeem(CALL, b"") is CALL


def test_what_was_altered_or_is_another_calls_is_noticed() -> None:
    payload = payload_of(CALL)
    with pytest.raises(BadClaim, match="is not what call"):
        redeem(left(CALL, payload), payload + b" ")
    other = payload_of(make_call(answers=[(1,)]))
    for foreign in (other, b"no JSON"):
        with pytest.raises(BadClaim, match="is no payload"):
            redeem(left(CALL, foreign), foreign)
