"""Whether rewarded episodes stand for all of their variant."""

from __future__ import annotations

import random

from fulgurite.selection.logged import LoggedEpisode
from fulgurite.selection.outcomes import Outcome
from fulgurite.selection.uneven_rewards import find_uneven_rewards


def outcome(propensity: float | None = 0.5, *, is_rewarded: bool = True) -> Outcome:
    episode = LoggedEpisode(
        group_id="g",
        variant="",
        propensity=propensity,
        reward=0.0,
        price=None,
        seconds=1.0,
        cell="",
    )
    return Outcome(
        rollout_id="r",
        episode=episode,
        is_rewarded=is_rewarded,
        is_failed=False,
        call_seconds=1.0,
        started_at=0,
        ended_at=0,
        known_at=0,
    )


REWARDED, UNREWARDED = outcome(), outcome(is_rewarded=False)


def found(a: list[Outcome], b: list[Outcome]) -> str | None:
    return find_uneven_rewards({"a": a, "b": b}, cut_share=0.01)


def test_a_variant_that_is_rewarded_less_often_is_named() -> None:
    assert found([REWARDED] * 100, [REWARDED] * 60 + [UNREWARDED] * 40) == (
        "60% of the episodes of 'b' have a reward, and 80% of all, so the rewarded ones do not "
        "stand for the others"
    )


def test_seldom_rewards_are_compared_by_their_ratio() -> None:
    few = [REWARDED] * 60 + [UNREWARDED] * 1_940
    assert found([REWARDED] * 20 + [UNREWARDED] * 1_980, few) is not None
    assert found(few, few) is None


def test_chance_is_no_reason() -> None:
    chance = random.Random(3)
    for count in (10, 100, 1_000):
        a, b = (
            [outcome(is_rewarded=chance.random() < 0.4) for _ in range(count)] for _ in range(2)
        )
        assert found(a, b) is None


def test_shares_that_changed_while_rewards_were_missing_are_no_reason() -> None:
    """Rewards begin late, when "a" gets nine of ten rollouts."""
    a = [UNREWARDED] * 500 + [outcome(0.9)] * 900
    b = [UNREWARDED] * 500 + [outcome(0.1)] * 100
    assert found(a, b) is None


def test_episodes_of_a_time_when_a_guard_rail_had_cut_a_variant_do_not_count() -> None:
    down = [outcome(0.01, is_rewarded=False)] * 30
    assert found([REWARDED] * 100, [REWARDED] * 100 + down) is None
    assert found([REWARDED] * 100, down) is None


def test_without_propensities_or_rewards_nothing_is_said() -> None:
    unknown = [outcome(None, is_rewarded=False)] * 100
    assert found([REWARDED] * 100, [REWARDED] * 100 + unknown) is None
    assert found([UNREWARDED] * 100, [UNREWARDED] * 100) is None
