"""The logged router and a candidate, side by side."""

from __future__ import annotations

import pytest

from fulgurite.errors import NoSupport
from fulgurite.selection.comparison import compare_routers
from fulgurite.selection.logged import LoggedEpisode, Weights


def one(number: int, variant: str, reward: float, price: float | None) -> LoggedEpisode:
    return LoggedEpisode(
        group_id=f"g{number}", variant=variant, propensity=0.5, reward=reward, price=price,
        seconds=2.0, cell="",
    )  # fmt: skip


LOG = [
    *(one(n, "cheap", float(n % 2), 0.1) for n in range(40)),
    *(one(n + 40, "dear", 1.0 - 0.2 * (n % 2), 3.0) for n in range(40)),
]


def test_prices_and_latency_count_by_their_weights() -> None:
    free = compare_routers(LOG, {"dear": 1.0}, Weights())
    assert (free.logged.mean, free.candidate.mean) == pytest.approx((0.7, 0.9))
    assert free.difference.mean == pytest.approx(0.2)
    paid = compare_routers(LOG, {"dear": 1.0}, Weights(price=0.2, latency=0.05))
    assert paid.logged.mean == pytest.approx(0.7 - 0.2 * 1.55 - 0.1)
    assert paid.candidate.mean == pytest.approx(0.9 - 0.2 * 3.0 - 0.1)
    assert paid.candidate_by_weighting.mean == pytest.approx(paid.candidate.mean)
    assert (paid.episodes, paid.effective) == (80, 40)
    cheap, dear = paid.variants
    assert (cheap.variant, cheap.episodes, cheap.price, cheap.seconds) == (
        "cheap",
        40,
        pytest.approx(0.1),
        2.0,
    )
    assert (dear.reward, dear.earned) == pytest.approx((0.9, 0.2))


def test_the_price_of_a_variant_is_unknown_where_one_episode_has_none() -> None:
    found = compare_routers([*LOG, one(99, "cheap", 1.0, None)], {"dear": 1.0}, Weights())
    assert [variant.price for variant in found.variants] == [None, pytest.approx(3.0)]


def test_the_logged_router_itself_differs_by_nothing() -> None:
    same = compare_routers(LOG, {"cheap": 0.5, "dear": 0.5}, Weights())
    assert same.candidate_by_weighting.mean == pytest.approx(same.logged.mean)
    assert same.difference.mean == pytest.approx(0.0, abs=1e-9)
    assert same.effective == 80


def test_a_log_without_rewarded_episodes_is_refused() -> None:
    with pytest.raises(NoSupport, match="no rewarded episode"):
        compare_routers([], {"a": 1.0}, Weights())
