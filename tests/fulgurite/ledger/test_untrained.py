"""Why a recorded call is no part of the ledger."""

from __future__ import annotations

import pytest

from fulgurite.enums import Mode
from fulgurite.ledger.untrained import UNTRAINED, Untrained, why_untrained
from tests.synthetic import make_call


@pytest.mark.parametrize(
    ("mode", "policy", "why"),
    [
        (Mode.train, "policy", None),
        (Mode.train, None, Untrained.no_policy),
        (Mode.val, "policy", Untrained.val),
        (Mode.val, None, Untrained.val),
        (Mode.live, "policy", Untrained.live),
        (Mode.live, None, Untrained.live),
    ],
)
def test_mode_and_policy_say_why(mode: Mode, policy: str | None, why: Untrained | None) -> None:
    assert why_untrained(make_call(mode=mode, policy=policy)) is why


def test_every_reason_has_words() -> None:
    assert set(UNTRAINED) == set(Untrained)
