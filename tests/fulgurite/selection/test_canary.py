"""When a new version is promoted or rolled back by what live traffic says."""

from __future__ import annotations

import random

import pytest

from fulgurite.selection.canary import GuardRails, Verdict, watch
from fulgurite.selection.live_episodes import LiveEpisode

RAILS = GuardRails(least=50, most=400, margin=0.1, patience_h=1.0)
HOUR = 3_600_000


def episodes(
    count: int,
    reward: float | None = None,
    *,
    seed: int = 0,
    failed: float = 0.0,
    truncated: float = 0.0,
    seconds: float = 1.0,
    people: int | None = None,
) -> list[LiveEpisode]:
    """`reward`: the chance of a thumb up."""
    chance = random.Random(seed)
    return [
        LiveEpisode(
            person=f"{seed}/{number % (people or count)}",
            reward=None if reward is None else float(chance.random() < reward),
            failed=chance.random() < failed,
            truncated=chance.random() < truncated,
            seconds=seconds * chance.uniform(0.9, 1.1),
            ended_at=number * 10_000 // count,
        )
        for number in range(count)
    ]


def judged(stable: list[LiveEpisode], new: list[LiveEpisode], now: int = 0) -> tuple[Verdict, str]:
    found = watch(stable, new, RAILS, 0, now)
    return found.verdict, found.reason


def test_few_users_decide_nothing() -> None:
    assert judged([], []) == (
        Verdict.undecided,
        "0 users of the new version and 0 of the stable one gave a reward; 50 and 30 are needed",
    )
    verdict, _ = judged(episodes(500, 0.9), episodes(49, 0.0, seed=1))
    assert verdict is Verdict.undecided
    verdict, _ = judged(episodes(29, 0.9), episodes(60, 0.0, seed=1))
    assert verdict is Verdict.undecided


def test_a_version_as_good_is_promoted_with_its_figures() -> None:
    verdict, reason = judged(episodes(900, 0.5), episodes(420, 0.55, seed=1))
    assert verdict is Verdict.promote
    assert "against" in reason
    assert "look 4 of 4" in reason
    assert "not worse by 0.1" in reason


def test_conversations_without_a_vote_say_nothing_of_rewards() -> None:
    silent = episodes(500, seed=7)
    voted = judged(episodes(900, 0.5), episodes(420, 0.55, seed=1))
    assert judged([*episodes(900, 0.5), *silent], episodes(420, 0.55, seed=1)) == voted


def test_a_worse_version_is_rolled_back_early() -> None:
    verdict, reason = judged(episodes(900, 0.8), episodes(60, 0.2, seed=1))
    assert verdict is Verdict.roll_back
    assert "worse by more than 0.1" in reason
    assert "look 1 of 4" in reason


def test_what_is_never_shown_is_rolled_back_in_the_end() -> None:
    stable = episodes(900, 0.6)
    new = episodes(420, 0.5, seed=3)
    verdict, reason = judged(stable, new)
    assert verdict is Verdict.roll_back
    assert "not shown" in reason
    verdict, reason = judged(stable, new[:120])
    assert verdict is Verdict.undecided
    assert "more episodes are needed" in reason


def test_patience_has_an_end() -> None:
    verdict, reason = judged([], [], now=HOUR + 1)
    assert verdict is Verdict.roll_back
    assert reason.startswith("no decision within 1 h: 0 users")
    assert judged([], [], now=HOUR)[0] is Verdict.undecided


@pytest.mark.parametrize(
    ("worse", "name"),
    [
        (episodes(40, failed=0.6, seed=1), "failed episodes"),
        (episodes(40, truncated=0.6, seed=1), "truncated episodes"),
        (episodes(40, seconds=2.0, seed=1), "time of a call"),
    ],
)
def test_guard_rails_need_no_votes(worse: list[LiveEpisode], name: str) -> None:
    verdict, reason = judged(episodes(300), worse)
    assert verdict is Verdict.roll_back
    assert reason.startswith(f"{name} rose by +")
    assert judged(episodes(300), episodes(40, seed=1))[0] is Verdict.undecided


def test_calls_that_take_no_time_are_compared_too() -> None:
    assert judged(episodes(300, seconds=0.0), episodes(40, seconds=0.0, seed=1))[0] is (
        Verdict.undecided
    )


def test_a_flood_from_one_user_counts_once() -> None:
    """One user's thousand thumbs down for the new version, beside 60 contented users."""
    flood = [
        LiveEpisode(
            person="flood", reward=0.0, failed=False, truncated=False, seconds=1.0, ended_at=1
        )
    ] * 1000
    stable, new = episodes(900, 0.9), episodes(60, 0.9, seed=1)
    assert judged(stable, [*flood, *new])[0] is not Verdict.roll_back


def test_a_look_takes_the_episodes_up_to_the_one_that_completed_it() -> None:
    stable, new = episodes(900, 0.5), episodes(60, 0.5, seed=1)
    later = [
        LiveEpisode(
            person=f"later {number}", reward=0.0, failed=False, truncated=False, seconds=1.0,
            ended_at=20_000,
        )
        for number in range(30)
    ]  # fmt: skip
    assert judged(stable, [*new, *later]) == judged(stable, new)


def test_equal_versions_are_seldom_rolled_back_as_worse() -> None:
    wrong = 0
    for seed in range(200):
        stable, new = episodes(400, 0.5, seed=seed), episodes(200, 0.5, seed=seed + 1000)
        looks = [watch(stable, new[:count], RAILS, 0, 0) for count in (50, 100, 200)]
        wrong += any(one.verdict is Verdict.roll_back for one in looks)
    assert wrong <= 6
