"""A scoped key is the rollout: it says so, it cannot be altered, it ends, and it goes with its key
id.
"""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import Mode
from fulgurite.ids import ROLLOUT_KEY_PREFIX
from services.gateway.errors import ExpiredKey, Unauthorized
from services.gateway.identity.claims import Claims
from services.gateway.identity.keys import AGENT_SCOPES, LEEWAY_MS, KeyRing

RING = KeyRing.parse("k1:0123456789abcdef-one, k2:0123456789abcdef-two")
CLAIMS = Claims("ro_x", 2, "gr_x", "solver", Mode.train, AGENT_SCOPES, 1_000_000)


def test_a_key_says_what_was_put_in() -> None:
    assert RING.verify(RING.mint(CLAIMS), 999_999) == CLAIMS


def test_a_key_looks_like_one_that_the_logger_hides() -> None:
    assert RING.mint(CLAIMS).startswith(ROLLOUT_KEY_PREFIX)


def test_clocks_may_differ_by_the_leeway() -> None:
    key = RING.mint(CLAIMS)
    assert RING.verify(key, CLAIMS.exp + LEEWAY_MS) == CLAIMS
    with pytest.raises(ExpiredKey, match="ro_x expired") as caught:
        RING.verify(key, CLAIMS.exp + LEEWAY_MS + 1)
    assert caught.value.claims == CLAIMS


def test_older_secrets_still_verify_and_retired_ones_do_not() -> None:
    old = KeyRing.parse("k2:0123456789abcdef-two").mint(CLAIMS)
    assert RING.verify(old, 0) == CLAIMS
    with pytest.raises(Unauthorized, match="'k2', which is retired"):
        KeyRing.parse("k1:0123456789abcdef-one").verify(old, 0)


def test_another_deployments_key_is_foreign() -> None:
    foreign = KeyRing.parse("k1:another-secret-of-20").mint(CLAIMS)
    with pytest.raises(Unauthorized, match="signature is wrong"):
        RING.verify(foreign, 0)


def test_claims_cannot_be_exchanged() -> None:
    kid, _, signature = RING.mint(CLAIMS).split(".")
    better = msgspec.json.encode(msgspec.structs.replace(CLAIMS, scopes=("reward",)))
    forged = f"{kid}.{base64.urlsafe_b64encode(better).rstrip(b'=').decode()}.{signature}"
    with pytest.raises(Unauthorized):
        RING.verify(forged, 0)


@given(st.text(max_size=80))
def test_damaged_keys_are_refused_not_crashed_on(tail: str) -> None:
    with pytest.raises(Unauthorized):
        RING.verify(ROLLOUT_KEY_PREFIX + tail, 0)


@pytest.mark.parametrize("text", ["", " , ", "nocolon", "k1:short", "bad kid:0123456789abcdef"])
def test_a_ring_that_makes_no_sense_says_so_without_the_secret(text: str) -> None:
    with pytest.raises(ValueError, match="FULGURITE_SIGNING_KEYS") as caught:
        KeyRing.parse(text)
    assert "short" not in str(caught.value)
