"""Shares from outcomes: warm-up, floors, guard rails, contexts, verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from fulgurite.events import RouteTarget, VariantDifference
from fulgurite.selection.deciding import (
    ANYWHERE,
    Chances,
    Observation,
    Shares,
    decide,
    is_changed,
    verdict_of,
)
from fulgurite.selection.history import Base
from fulgurite.selection.logged import LoggedEpisode, Weights
from fulgurite.selection.outcomes import Outcome
from fulgurite.selection.rules import GuardRules, Objective, SelectionRules

A, B = (
    RouteTarget(policy="", upstream=name, weight=weight) for name, weight in (("a", 3), ("b", 1))
)
BASE = Base(route_id="r", time=0, targets=(A, B))
RULES = SelectionRules(warmup=2, cell_episodes=2, floor=0.1, guard=GuardRules(window=4))


def outcome(number: int, name: str, reward: float | None = 1.0, **changes: Any) -> Outcome:
    episode = LoggedEpisode(
        group_id=f"g{number}",
        variant=f"upstream:{name}",
        propensity=0.5,
        reward=reward or 0.0,
        price=changes.pop("price", None),
        seconds=2.0,
        cell=changes.pop("cell", "/short"),
    )
    made = Outcome(
        rollout_id=f"r{number}",
        episode=episode,
        is_rewarded=reward is not None,
        is_failed=False,
        call_seconds=1.0,
        started_at=number,
        ended_at=number,
        known_at=number,
    )
    return msgspec.structs.replace(made, **changes)


def means(observed: Mapping[str, Sequence[Observation]], cells: Sequence[str]) -> Chances:
    """Certain of the best weighted mean of each cell."""

    def mean(name: str, cell: str) -> float:
        found = [one for one in observed[name] if cell in (ANYWHERE, one.cell)]
        total = sum(one.weight for one in found)
        return sum(one.value * one.weight for one in found) / total

    best = {cell: max(observed, key=lambda name: mean(name, cell)) for cell in cells}
    return {cell: {name: float(name == best[cell]) for name in observed} for cell in cells}


def decided(*outcomes: Outcome, rules: SelectionRules = RULES, **more: Any) -> Shares:
    return decide(BASE, outcomes, rules, more.get("held", set()), more.get("ended"), means)


def weights(shares: Shares, cell: str = ANYWHERE) -> list[float]:
    return [one.cell_weights.get(cell, one.weight) for one in shares.targets]


def warm(a: float = 1.0, b: float = 0.0) -> list[Outcome]:
    return [outcome(n, "a", a) for n in range(3)] + [outcome(n, "b", b) for n in range(10, 13)]


def test_without_episodes_the_route_stays_as_it_is() -> None:
    found = decided()
    assert weights(found) == [0.75, 0.25]
    assert (found.known_until, found.counted, found.differences) == (0, 0, ())
    assert found.variants[0].reward is None
    assert "upstream:b: 0 of 2 rewarded episodes to warm up" in found.reason
    assert not is_changed(found.targets, BASE.targets, 0.001)


def test_a_cold_variant_keeps_its_share() -> None:
    found = decided(*(outcome(n, "a", 0.0) for n in range(5)), outcome(9, "b"))
    assert weights(found) == [0.75, 0.25]


def test_warm_variants_share_by_what_they_earn_down_to_the_floor() -> None:
    found = decided(*warm())
    assert weights(found) == [0.9, 0.1]
    assert found.reason == "what the variants earn"
    report = found.variants[0]
    assert (report.episodes, report.failed, report.reward, report.seconds, report.earned) == (
        3,
        0,
        1.0,
        2.0,
        1.0,
    )
    assert (report.share, report.price, report.guard) == (0.9, None, None)
    assert (found.known_until, found.counted) == (12, 6)


def test_old_episodes_count_less() -> None:
    old = [outcome(n, "a", 1.0) for n in range(5)] + [outcome(n, "a", 0.0) for n in range(20, 24)]
    rival = [outcome(n, "b", 0.4) for n in range(30, 33)]
    assert weights(decided(*old, *rival)) == [0.9, 0.1]
    quick = msgspec.structs.replace(RULES, half_life=1.0)
    assert weights(decided(*old, *rival, rules=quick)) == [0.1, 0.9]


def test_a_context_with_enough_episodes_has_shares_of_its_own() -> None:
    other = [outcome(n, "a", 0.0, cell="/long") for n in range(20, 23)]
    other += [outcome(n, "b", 1.0, cell="/long") for n in range(30, 33)]
    few = [outcome(40, "a", 1.0, cell="/huge")]
    found = decided(*warm(), *other, *few)
    assert weights(found, "/long") == [0.1, 0.9]
    assert weights(found, "/short") == [0.9, 0.1]
    assert "/huge" not in found.targets[0].cell_weights
    none = decided(*warm(), *other, rules=msgspec.structs.replace(RULES, cells=0))
    assert none.targets[0].cell_weights == {}


def test_price_and_latency_are_taken_off() -> None:
    rules = msgspec.structs.replace(RULES, weights=Weights(price=10.0))
    found = decided(
        *(outcome(n, "a", 1.0, price=0.2) for n in range(3)),
        *(outcome(n, "b", 0.5, price=0.01) for n in range(3, 6)),
        rules=rules,
    )
    assert weights(found) == [0.1, 0.9]
    assert (found.variants[0].price, found.variants[0].earned) == (pytest.approx(0.2), -1.0)
    unpriced = decided(*warm(), rules=rules)
    assert "upstream:a: 3 episodes have no price" in unpriced.reason
    assert unpriced.counted == 0


def test_a_failing_variant_keeps_the_guard_rails_share() -> None:
    failed = [outcome(n, "a", None, is_failed=True) for n in range(50, 52)]
    found = decided(*warm(), *failed)
    assert weights(found) == [0.01, 0.99]
    assert found.guarded() == {"upstream:a"}
    assert found.variants[0].failed == 2
    assert found.reason.startswith("upstream:a: 2 of its latest 4 episodes failed")
    one = outcome(60, "a", is_failed=True)
    assert decided(*warm(), one, held={"upstream:a"}).guarded() == {"upstream:a"}
    assert decided(*warm(), one).guarded() == set()


def test_if_all_fail_the_route_stays_as_it_is() -> None:
    failed = [outcome(n, name, None, is_failed=True) for name in "ab" for n in range(2)]
    found = decided(*failed)
    assert weights(found) == [0.75, 0.25]
    assert found.reason == "every variant is beyond a guard rail: the route's own shares"


def test_a_comparison_gives_rivals_equal_shares_until_it_has_ended() -> None:
    rules = msgspec.structs.replace(RULES, objective=Objective.verdict)
    assert weights(decided(*warm(), rules=rules)) == [0.5, 0.5]
    ended = decided(*warm(), rules=rules, ended="upstream:b")
    assert weights(ended) == [0.1, 0.9]
    assert "the comparison has ended: upstream:b" in ended.reason
    failed = [outcome(n, "b", None, is_failed=True) for n in range(50, 52)]
    assert weights(decided(*warm(), *failed, rules=rules, ended="upstream:b")) == [0.99, 0.01]


def test_differences_need_variants_that_have_warmed_up() -> None:
    many = [outcome(n, "ab"[n % 2], float(n % 3 == 0)) for n in range(60)]
    (found,) = decided(*many).differences
    assert found.groups == 60
    cold = msgspec.structs.replace(RULES, warmup=31)
    assert decided(*many, rules=cold).differences == ()


def test_rewards_that_one_variant_has_less_often_say_nothing() -> None:
    many = [outcome(n, "ab"[n % 2], float(n % 3 == 0)) for n in range(200)]
    kept = [one for n, one in enumerate(many) if n % 4 != 1]
    assert decided(*kept).differences != ()
    unrewarded = [outcome(n, "b", None) for n in range(1, 200, 4)]
    found = decided(*kept, *unrewarded)
    assert found.differences == ()
    assert found.withheld is not None
    assert found.withheld.startswith("50% of the episodes of 'upstream:b' have a reward, and 75%")
    assert found.reason == f"what the variants earn; no comparison: {found.withheld}"
    rules = msgspec.structs.replace(RULES, most_episodes=100)
    has_ended, winner, why = verdict_of(found, rules)
    assert (has_ended, winner) == (True, None)
    assert why == f"no variant is better than all others after 150 episodes: {found.withheld}"


def test_a_verdict_needs_every_difference_or_enough_episodes() -> None:
    sure, unsure = (
        VariantDifference(better="a", worse="b", mean=0.2, low=low, high=0.3, groups=50)
        for low in (0.1, -0.1)
    )
    shares = msgspec.structs.replace(decided(), counted=10)
    rules = msgspec.structs.replace(RULES, most_episodes=100)

    def verdict(*differences: VariantDifference, counted: int = 10) -> tuple[bool, str | None, str]:
        changed = msgspec.structs.replace(shares, differences=differences, counted=counted)
        return verdict_of(changed, rules)

    assert verdict(sure) == (True, "a", "a is better than b by 0.2 [0.1, 0.3], at 95% confidence")
    assert verdict(sure, unsure) == (False, None, "")
    assert verdict() == (False, None, "")
    has_ended, winner, why = verdict(unsure, counted=100)
    assert (has_ended, winner) == (True, None)
    assert why == "no variant is better than all others after 100 episodes"


def test_routes_differ_in_variants_or_in_a_share() -> None:
    half = msgspec.structs.replace(A, weight=1), B
    local = (
        msgspec.structs.replace(A, weight=1, cell_weights={"/long": 3}),
        msgspec.structs.replace(B, cell_weights={"/long": 1}),
    )
    assert not is_changed(
        (A, B),
        (msgspec.structs.replace(A, weight=6), RouteTarget(policy="", upstream="b", weight=2)),
        0.0,
    )
    assert is_changed((A, B), (A,), 1.0)
    assert is_changed((A, B), half, 0.2)
    assert not is_changed((A, B), half, 0.3)
    assert is_changed(half, local, 0.2)
    assert not is_changed(half, local, 0.3)
