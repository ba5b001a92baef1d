"""Keys: what a caller without the right one is told, and who is an operator."""

from __future__ import annotations

import pytest

from services.gateway.errors import Unauthorized
from services.gateway.identity.authenticator import ADMIN_KEY, Authenticator
from services.gateway.identity.keys import KeyRing

RING = KeyRing.parse("k1:0123456789abcdef")


def test_a_missing_or_unknown_key_is_told_which_is_wanted() -> None:
    door = Authenticator(RING, "the-admin-key", ("plain",), allow_any=False)
    for authorization in (None, "", "Basic x", "Bearer nobody"):
        with pytest.raises(Unauthorized, match="OPENAI_API_KEY"):
            door.admit(authorization, 0)
        with pytest.raises(Unauthorized, match="FULGURITE_ADMIN_KEY"):
            door.admit(authorization, 0, ADMIN_KEY)


@pytest.mark.parametrize(
    ("key", "operator"),
    [("ops", True), ("the-admin-key", True), ("plain", False), ("", False), ("ö", False)],
)
def test_operators_have_a_key_of_their_own(key: str, operator: bool) -> None:
    assert (
        Authenticator(RING, "the-admin-key", ("plain",), False, "ops").is_operator(f"Bearer {key}")
        is operator
    )
    assert Authenticator(RING, "the-admin-key", ("plain",), False).is_operator(f"Bearer {key}")
    assert Authenticator(RING, None, (), False, "ops").is_operator(None) is False
