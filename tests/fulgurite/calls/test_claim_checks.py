"""Claim checks: a call without its text, and with it again."""

from __future__ import annotations

import json
from typing import Any, cast

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fulgurite.calls.claim_checks import (
    claims_of,
    described,
    digest,
    extract_pieces,
    leave,
    payload_of,
    put_back_pieces,
    redeem,
)
from fulgurite.errors import BadClaim
from fulgurite.events import ClaimCheck, LlmCall
from fulgurite.trajectories.building import successful_actions
from tests.synthetic import make_call

CALL = msgspec.structs.replace(make_call(answers=[(7, 9), (8,)]), response='{"id": "x"}')


def left(call: LlmCall, payload: bytes) -> LlmCall:
    return leave(
        call, ClaimCheck(uri="file:///claims/x", sha256=digest(payload), size=len(payload))
    )


def test_what_stays_counts_and_trains_and_what_goes_comes_back() -> None:
    payload = payload_of(CALL)
    light = left(CALL, payload)
    assert (light.request, light.response, [choice.message for choice in light.choices]) == (
        None,
        None,
        [None, None],
    )
    assert successful_actions(light) == successful_actions(CALL)
    assert (light.prompt_token_ids, light.choices[1].token_ids) == (
        CALL.prompt_token_ids,
        CALL.choices[1].token_ids,
    )
    assert redeem(light, payload) == CALL


def test_a_call_without_a_claim_is_whole() -> None:
    assert redeem(CALL, b"") is CALL


def test_what_was_altered_or_is_another_calls_is_noticed() -> None:
    payload = payload_of(CALL)
    with pytest.raises(BadClaim, match="is not what call"):
        redeem(left(CALL, payload), payload + b" ")
    other = payload_of(make_call(answers=[(1,)]))
    for foreign in (other, b"no JSON"):
        with pytest.raises(BadClaim, match="is not a payload"):
            redeem(left(CALL, foreign), foreign)


def claim(payload: bytes) -> ClaimCheck:
    return ClaimCheck(
        uri=f"file:///claims/{digest(payload)}", sha256=digest(payload), size=len(payload)
    )


def by_pieces(call: LlmCall, least: int) -> tuple[LlmCall, dict[str, bytes]]:
    """As the gateway leaves it."""
    light, payloads = extract_pieces(call, least)
    return msgspec.structs.replace(light, pieces=tuple(map(claim, payloads.values()))), payloads


IMAGE = "data:image/png;base64," + "A" * 5000
SEEN = [{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": "what?"}]
TURN = msgspec.structs.replace(
    make_call(messages=[{"role": "user", "content": SEEN}]), response='{"id": "x"}'
)


def test_a_long_text_is_left_once_however_often_it_stands_there() -> None:
    twice = msgspec.structs.replace(
        TURN, request=json.dumps([TURN.request, IMAGE, IMAGE]), response=json.dumps({"seen": IMAGE})
    )
    light, payloads = by_pieces(twice, 1000)
    assert len(light.pieces) == len(payloads) == 2, "the image, and the text that quotes it"
    assert len(light.request or "") < 500
    assert put_back_pieces(light, payloads) == twice
    assert claims_of(light) == light.pieces
    whole = leave(light, claim(payload_of(light)))
    assert claims_of(whole) == (whole.claim_check, *light.pieces)
    assert put_back_pieces(redeem(whole, payload_of(light)), payloads) == twice


def test_what_is_short_stays_readable_and_says_how_long_the_rest_is() -> None:
    light, _ = by_pieces(TURN, 1000)
    assert '"what?"' in (light.request or "")
    assert "[5,022 bytes in the claims store]" in described(light.request or "")
    assert light.choices == TURN.choices
    assert described("as it is") == "as it is"


def test_a_text_with_a_placeholder_of_its_own_is_left_alone() -> None:
    light, payloads = by_pieces(TURN, 1000)
    quoting = msgspec.structs.replace(
        TURN, request=json.dumps([json.loads(light.request or ""), IMAGE])
    )
    assert by_pieces(quoting, 1000) == (quoting, {})
    assert put_back_pieces(quoting, payloads) is quoting


def test_a_piece_that_is_missing_altered_or_not_named_is_noticed() -> None:
    light, payloads = by_pieces(TURN, 1000)
    (name,) = payloads
    with pytest.raises(BadClaim, match="was not read"):
        put_back_pieces(light, {})
    with pytest.raises(BadClaim, match="is not what call"):
        put_back_pieces(light, {name: b"other"})
    other = claim(b"other")
    with pytest.raises(BadClaim, match="has no claim check for"):
        put_back_pieces(msgspec.structs.replace(light, pieces=(other,)), {other.sha256: b"other"})


def test_a_forged_call_that_repeats_a_piece_does_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    light, payloads = by_pieces(TURN, 1000)
    forged = msgspec.structs.replace(
        light, request=json.dumps([json.loads(light.request or "")] * 3)
    )
    put_back_pieces(forged, payloads)
    monkeypatch.setattr("fulgurite.calls.claim_checks._MOST_TEXT", 10_000)
    with pytest.raises(BadClaim, match="has more than"):
        put_back_pieces(forged, payloads)
    assert put_back_pieces(light, payloads) == TURN
    monkeypatch.setattr("fulgurite.calls.claim_checks._MOST_TEXT", 5_000)
    assert extract_pieces(TURN, 1000) == (TURN, {})


LEAVES = st.none() | st.integers() | st.text(max_size=30)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=12,
)
TEXTS = st.text(alphabet='"\\ab{}[]:, \n\u2603\ud83c', max_size=60) | st.builds(
    json.dumps, JSON, ensure_ascii=st.booleans()
)


@given(TEXTS, st.integers(0, 12))
@example('"' + "\\" * 3, 0)
@example('"' + '\\"' * 50, 0)
def test_any_text_comes_back_to_the_byte(text: str, least: int) -> None:
    call = msgspec.structs.replace(TURN, request=text, response=None)
    light, payloads = by_pieces(call, least)
    assert put_back_pieces(light, payloads) == call
    assert all(len(piece.decode("utf-8", "surrogatepass")) >= least for piece in payloads.values())


@given(JSON, st.integers(1, 12))
def test_json_stays_json_without_a_long_string(value: object, least: int) -> None:
    light, _ = by_pieces(msgspec.structs.replace(TURN, request=json.dumps(value)), least)

    def strings(found: Any) -> list[str]:
        if isinstance(found, dict):
            pairs = cast("dict[str, Any]", found).items()
            return [text for name, inner in pairs for text in (name, *strings(inner))]
        if isinstance(found, list):
            return [text for inner in cast("list[Any]", found) for text in strings(inner)]
        return [found] if isinstance(found, str) else []

    for text in strings(json.loads(light.request or "")):
        assert text.startswith("fulgurite:claim:") or len(json.dumps(text)) - 2 < least
