"""When a variant loses its traffic, and when it gets it back."""

from __future__ import annotations

import msgspec
import pytest

from fulgurite.selection.guard_rails import guard_reason
from fulgurite.selection.logged import LoggedEpisode
from fulgurite.selection.outcomes import Outcome
from fulgurite.selection.rules import GuardRules

RULES = GuardRules(window=20, error_rate=0.25, call_seconds=2.0)


def outcome(*, is_failed: bool = False, call_seconds: float = 1.0) -> Outcome:
    episode = LoggedEpisode(
        group_id="g", variant="a", propensity=0.5, reward=0.0, price=None, seconds=1.0, cell=""
    )
    return Outcome(
        rollout_id="r",
        episode=episode,
        is_rewarded=False,
        is_failed=is_failed,
        call_seconds=call_seconds,
        started_at=0,
        ended_at=0,
        known_at=0,
    )


GOOD, FAILED, SLOW = outcome(), outcome(is_failed=True), outcome(call_seconds=3.0)


@pytest.mark.parametrize(
    ("outcomes", "is_held", "reason"),
    [
        ([], False, None),
        ([FAILED] * 5, False, None),
        ([FAILED] * 6, False, "6 of its latest 6 episodes failed"),
        ([FAILED] * 6 + [GOOD] * 14, False, "6 of its latest 20 episodes failed"),
        ([FAILED] * 6 + [GOOD] * 15, False, None),
        ([FAILED] * 3 + [GOOD] * 17, True, "3 of its latest 20 episodes failed"),
        ([FAILED] * 2 + [GOOD] * 18, True, None),
        ([SLOW] * 10, False, None),
        (
            [SLOW] * 11,
            False,
            "in 11 of its latest 11 episodes a call took more than 2 s on average",
        ),
        (
            [SLOW] * 6 + [GOOD] * 14,
            True,
            "in 6 of its latest 20 episodes a call took more than 2 s on average",
        ),
    ],
)
def test_bad_episodes_among_the_latest_are_counted(
    outcomes: list[Outcome], is_held: bool, reason: str | None
) -> None:
    in_order = [msgspec.structs.replace(one, ended_at=place) for place, one in enumerate(outcomes)]
    assert guard_reason(in_order, RULES, is_held=is_held) == reason


def test_late_votes_on_earlier_episodes_do_not_lift_it() -> None:
    down = [msgspec.structs.replace(FAILED, ended_at=place) for place in range(100, 106)]
    votes = [msgspec.structs.replace(GOOD, ended_at=place, known_at=500) for place in range(20)]
    reason = "6 of its latest 20 episodes failed"
    assert guard_reason([*down, *votes], RULES, is_held=True) == reason


def test_without_a_limit_no_call_is_too_slow() -> None:
    assert guard_reason([SLOW] * 20, GuardRules(), is_held=False) is None
