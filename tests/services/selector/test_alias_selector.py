"""A selector between a simulated stream and a gateway's router: what it writes, and when."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import pytest

from fulgurite.enums import SelectionKind, SelectionMode
from fulgurite.events import Episode, PolicyRoute, SelectionDecision
from fulgurite.selection.logged import Weights
from fulgurite.selection.rules import GuardRules, Objective, SelectionRules
from services.selector.errors import Superseded
from tests.selection_stream import EASY, HARD, Model, Stream, stored

RULES = SelectionRules(weights=Weights(price=1.0), every=40, warmup=20)
TWO = {
    "good": Model({EASY: 0.9, HARD: 0.9}, 0.0),
    "bad": Model({EASY: 0.3, HARD: 0.3}, 0.0),
}


def routes(stream: Stream) -> list[PolicyRoute]:
    return [event for event in stream.log if isinstance(event, PolicyRoute)]


def test_the_share_of_what_earns_more_grows_and_the_other_keeps_the_floor() -> None:
    stream = Stream(RULES, 1, TWO)
    stream.run(600)
    assert stream.shares() == pytest.approx({"good": 0.95, "bad": 0.05})
    first, *made = routes(stream)
    assert all(one.selection is not None and one.author == "selector first" for one in made)
    assert made[0].previous == first.targets
    assert made[-1].reason == "what the variants earn"


def test_before_the_warm_up_the_route_is_left_alone() -> None:
    stream = Stream(RULES, 1, TWO, weights={"good": 0.1, "bad": 0.9})
    stream.run(100)
    (decision, *_) = [one for one in stream.decisions() if one.kind is SelectionKind.shares]
    assert "upstream:good: " in decision.reason
    assert "of 20 rewarded episodes to warm up" in decision.reason
    assert len(routes(stream)) == 1


def test_contexts_get_the_variants_that_are_best_there() -> None:
    models = {
        "small": Model({EASY: 0.9, HARD: 0.1}, 0.0),
        "large": Model({EASY: 0.9, HARD: 0.9}, 0.3),
    }
    stream = Stream(RULES, 2, models)
    stream.run(1_500)
    assert stream.shares("/short")["small"] > 0.9
    assert stream.shares("/medium")["large"] > 0.9


def test_a_variant_that_fails_loses_its_traffic_within_the_stated_episodes() -> None:
    guard = GuardRules(window=8, error_rate=0.25, share=0.04)
    stream = Stream(msgspec.structs.replace(RULES, guard=guard), 3, TWO)
    stream.run(600)
    done = stream.run(
        200,
        settle_every=1,
        fails=lambda name: name == "good",
        until=lambda: stream.shares()["good"] <= guard.share,
    )
    assert stream.shares()["good"] == pytest.approx(guard.share)
    failed = sum(name == "good" for name, _, _ in done)
    assert failed == guard.error_rate * guard.window + 1
    stream.run(1_000, until=lambda: stream.shares()["good"] > 0.5)
    assert stream.shares()["good"] > 0.5, "it recovered"


def test_no_rollout_changes_its_variant() -> None:
    stream = Stream(RULES, 4, TWO)
    given: dict[str, str | None] = {}
    for _ in range(8):
        stream.run(60)
        for number in range(stream.begun):
            rollout = f"4-{number + 1}"
            way = stream.router.candidates("assistant", rollout, lambda: "/long")[0]
            assert given.setdefault(rollout, way.variant) == way.variant
    assert len(routes(stream)) > 2


def test_propensities_are_the_shares_of_the_route_in_force() -> None:
    stream = Stream(RULES, 5, TWO)
    stream.run(400)
    shares: dict[str | None, float] = {}
    seen: defaultdict[str | None, set[float | None]] = defaultdict(set)
    for event in stream.log:
        if isinstance(event, PolicyRoute):
            total = sum(one.weight for one in event.targets)
            shares = {f"upstream:{one.upstream}": one.weight / total for one in event.targets}
        elif isinstance(event, Episode):
            (call,) = event.calls
            if call.cell is None:
                assert call.propensity == pytest.approx(shares[call.variant])
            seen[call.variant].add(call.propensity)
    assert all(len(found) > 1 for found in seen.values())


@pytest.mark.parametrize("mode", [SelectionMode.shadow, SelectionMode.proposal])
def test_other_modes_decide_and_route_nothing(mode: SelectionMode) -> None:
    stream = Stream(RULES, 6, TWO, mode)
    stream.run(300)
    decisions = [one for one in stream.decisions() if one.kind is SelectionKind.shares]
    assert {one.mode for one in decisions} == {mode}
    assert decisions[-1].targets != decisions[-1].base_targets
    assert len(routes(stream)) == 1


def test_a_comparison_ends_with_a_verdict_and_the_winner_takes_over() -> None:
    rules = msgspec.structs.replace(RULES, objective=Objective.verdict)
    stream = Stream(rules, 7, TWO)
    stream.run(600, until=lambda: stream.selector.history.verdict() is not None)
    verdict = stream.selector.history.verdict()
    assert verdict is not None
    assert verdict.winner == "upstream:good"
    assert verdict.reason.startswith("upstream:good is better than upstream:bad by 0.")
    (difference,) = verdict.differences
    assert 0 < difference.low < 0.6 < difference.high
    stream.run(200)
    assert stream.shares() == pytest.approx({"good": 0.95, "bad": 0.05})
    verdicts = [one for one in stream.decisions() if one.kind is SelectionKind.verdict]
    assert verdicts == [verdict]


def test_an_operators_route_starts_the_selector_again() -> None:
    stream = Stream(RULES, 8, TWO)
    stream.run(400)
    route = stream.set_route({"good": 1.0, "bad": 1.0})
    stream.settle()
    assert stream.shares() == {"good": 0.5, "bad": 0.5}, "earlier episodes do not count"
    assert stream.selector.history.shares() is None
    stream.run(300)
    last = stream.selector.history.shares()
    assert last is not None
    assert last.base_id == route.event_id
    assert stream.shares()["good"] > 0.9
    stream.set_route({"bad": 1.0})
    count = len(stream.log)
    stream.settle()
    assert len(stream.log) == count, "one variant: nothing to choose"


def test_a_route_set_while_a_decision_is_applied_wins() -> None:
    stream = Stream(RULES, 9, TWO)
    for _ in range(80):
        stream.rollout()
    while not isinstance(late := stream.selector.due(stream.now_ms), PolicyRoute):
        assert late is not None
        stream.write(late)
    stream.set_route({"good": 0.2, "bad": 0.8})
    stream.write(late)
    assert stream.shares()["good"] > 0.4
    stream.settle()
    assert stream.shares() == {"good": 0.2, "bad": 0.8}


def test_a_second_selector_takes_over_and_the_first_stops() -> None:
    stream = Stream(RULES, 10, TWO)
    stream.run(200)
    first, second = stream.selector, stream.restarted("second")
    assert second.due(stream.now_ms) is None, "it has not claimed yet"
    claim = second.claim(stream.now_ms)
    assert claim.epoch == 2
    for selector in (first, second):
        selector.apply(claim)
    with pytest.raises(Superseded, match="second holds epoch 2"):
        first.due(stream.now_ms)
    late = msgspec.structs.replace(claim, selector_id="third")
    second.apply(late)
    second.due(stream.now_ms)


def test_a_selector_that_is_killed_anywhere_loses_and_repeats_nothing() -> None:
    """After each event of a decision a new one takes over; the log has each event once, and the
    shares are those of one that was never killed.
    """
    calm, killed = Stream(RULES, 11, TWO), Stream(RULES, 11, TWO)
    calm.run(400)
    for number in range(400):
        killed.rollout()
        if number % 5 == 0 or number == 399:
            while (event := killed.selector.due(killed.now_ms)) is not None:
                if number % 2:
                    killed.write(event)
                killed.selector = killed.restarted(f"{number}-{len(killed.log)}")
                killed.write(killed.selector.claim(killed.now_ms))
                if number % 2 == 0:
                    again = killed.selector.due(killed.now_ms)
                    assert again is not None, "what was not written is decided again"
                    killed.write(again)

    def content(stream: Stream) -> list[object]:
        return [
            (event.kind, event.targets, event.known_until)
            if isinstance(event, SelectionDecision)
            else event.targets
            for event in stream.log
            if isinstance(event, PolicyRoute | SelectionDecision)
            and not (isinstance(event, SelectionDecision) and event.kind is SelectionKind.claim)
        ]

    assert content(killed) == content(calm)
    ids = [event.event_id for event in killed.log]
    assert len(ids) == len(set(ids))


def test_a_rebuilt_selector_has_the_same_state_byte_for_byte() -> None:
    stream = Stream(RULES, 12, TWO)
    stream.run(300)
    again = stream.restarted("again")
    assert again.history.shares() == stream.selector.history.shares()
    other = Stream(RULES, 12, TWO)
    other.run(300)
    assert stored(other.log) == stored(stream.log)
