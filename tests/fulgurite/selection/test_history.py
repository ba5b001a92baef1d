"""What a selector goes on from: routes, claims and decisions of one alias."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fulgurite.enums import SelectionKind, SelectionMode
from fulgurite.events import PolicyRoute, RouteTarget, SelectionDecision
from fulgurite.selection.authors import EVALUATION, GATE, evaluation_for
from fulgurite.selection.history import Base, SelectionHistory, route_of

A, B = (RouteTarget(policy="", upstream=name, weight=0.5) for name in "ab")
TARGETS = (A, B)
NEW = (msgspec.structs.replace(A, weight=0.9), msgspec.structs.replace(B, weight=0.1))


def route(number: int, *targets: RouteTarget, **changes: Any) -> PolicyRoute:
    made = PolicyRoute(
        event_id=f"route-{number}",
        event_time=number,
        alias="policy",
        targets=targets,
        reason="",
        author="operator",
    )
    return msgspec.structs.replace(made, **changes)


def decision(name: str = "d", base: PolicyRoute | None = None, **changes: Any) -> SelectionDecision:
    base = base or route(1, *TARGETS)
    made = SelectionDecision(
        event_id=name,
        event_time=5,
        alias="policy",
        kind=SelectionKind.shares,
        mode=SelectionMode.automatic,
        epoch=1,
        selector_id="one",
        base_id=base.event_id,
        base_time=base.event_time,
        base_targets=base.targets,
        replaces=base.event_id,
        targets=NEW,
        reason="it earns more",
    )
    return msgspec.structs.replace(made, **changes)


CLAIM = decision("claim", kind=SelectionKind.claim, base_id=None, targets=())


def history(*events: object) -> SelectionHistory:
    found = SelectionHistory("policy")
    for event in events:
        found.apply(event)
    return found


def test_the_base_is_the_last_route_that_no_selector_wrote() -> None:
    assert history().base() is None
    assert history(route(1, A), route(2)).base() is None, "it was cleared"
    base = Base(route_id="route-1", time=1, targets=TARGETS)
    operator, made = route(1, *TARGETS), decision()
    applied = route_of(made, "selector", operator.targets)
    assert history(operator).base() == base
    assert history(operator, CLAIM, made, applied).base() == base
    assert history(applied, CLAIM, made).base() == base, "the operator's route was compacted"
    assert history(applied).base() == Base(route_id=applied.event_id, time=5, targets=NEW), (
        "its decision is unknown"
    )
    again = history(operator, CLAIM, made, applied, route(9, A, B)).base()
    assert again == Base(route_id="route-9", time=9, targets=(A, B))


@pytest.mark.parametrize("author", [GATE, EVALUATION, evaluation_for("policy")])
def test_there_is_no_base_while_another_service_holds_the_alias(author: str) -> None:
    operator = route(1, *TARGETS)
    held = history(operator, route(2, A, author=author))
    assert held.base() is None
    held.apply(operator)
    assert held.base() == Base(route_id="route-1", time=1, targets=TARGETS)


def test_a_base_is_the_same_after_an_evaluation_put_the_route_back() -> None:
    operator, made = route(1, *TARGETS), decision()
    applied = route_of(made, "selector", operator.targets)
    evaluation = route(9, A, author=EVALUATION)
    found = history(operator, CLAIM, made, applied, evaluation, applied)
    assert found.base() == Base(route_id="route-1", time=1, targets=TARGETS)
    assert found.shares() == made
    assert not found.is_overtaken()


def test_variants_are_the_targets_with_a_share() -> None:
    base = Base(route_id="r", time=1, targets=(A, msgspec.structs.replace(B, weight=0)))
    assert list(base.variants()) == ["upstream:a"]


def test_decisions_count_from_the_holder_and_this_base() -> None:
    operator, made = route(1, *TARGETS), decision()
    verdict = decision("v", kind=SelectionKind.verdict, winner="upstream:a")
    found = history(operator, CLAIM, made, verdict)
    assert (found.shares(), found.verdict()) == (made, verdict)
    assert history(operator, made).shares() is None, "nobody had claimed"
    other = decision("claim-2", kind=SelectionKind.claim, epoch=2, selector_id="two")
    late = decision("late")
    found = history(operator, CLAIM, made, other, late)
    assert found.shares() == made, "the first selector was superseded"
    assert (found.epochs.epoch, found.epochs.holder) == (2, "two")
    found.apply(route(7, *TARGETS))
    assert (found.shares(), found.verdict()) == (None, None)
    assert history(operator, CLAIM, decision(base_id=None)).shares() is None
    unknown = decision("u", kind=SelectionKind.unknown)
    assert history(operator, CLAIM, made, unknown).shares() == made


def test_other_aliases_and_topics_do_not_matter() -> None:
    found = SelectionHistory("another")
    assert not found.apply(route(1, *TARGETS))
    assert not found.apply(CLAIM)
    assert not found.apply(None)


def test_an_automatic_decision_is_unapplied_until_its_route_is_there() -> None:
    operator, made = route(1, *TARGETS), decision()
    assert history(operator, CLAIM).unapplied() is None
    assert history(operator, CLAIM, made).unapplied() == made
    applied = route_of(made, "selector", operator.targets)
    assert applied.targets == NEW
    assert applied.previous == TARGETS
    assert applied == route_of(made, "selector", operator.targets)
    assert history(operator, CLAIM, made, applied).unapplied() is None
    assert history(operator, CLAIM, decision(targets=TARGETS)).unapplied() is None
    for mode in (SelectionMode.shadow, SelectionMode.proposal):
        assert history(operator, CLAIM, decision(mode=mode)).unapplied() is None


def test_a_route_that_overtakes_an_operators_is_noticed() -> None:
    operator, made = route(1, *TARGETS), decision()
    applied = route_of(made, "selector", operator.targets)
    assert not history().is_overtaken()
    assert not history(operator, CLAIM, made, applied).is_overtaken()
    late = history(operator, CLAIM, made, route(4, B), applied)
    assert late.is_overtaken()
    assert late.base() == Base(route_id="route-4", time=4, targets=(B,))
